"""Match a checkpoint against the families: which tensor plays which role, at which size.

Works on names, shapes and configuration only; no weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, cast

from ckptforensics.architectures.agreement import (
    refuse_more_layers,
    require_agreement,
    require_layers,
)
from ckptforensics.architectures.block import BlockResolver, misshapen
from ckptforensics.architectures.evidence import note_doubtful_gains, unknown
from ckptforensics.architectures.infer import infer_family
from ckptforensics.architectures.known import Known
from ckptforensics.architectures.names import (
    as_old,
    at_layer,
    block_prefixes,
    find_prefix,
    is_stored,
)
from ckptforensics.architectures.plan import (
    Architecture,
    EmbeddingRefs,
    FamilySource,
    LayerPlan,
    RoutingPlan,
    Sizes,
)
from ckptforensics.architectures.schema import (
    UNUSED_REASONS,
    Family,
    Layout,
    NormPosition,
    Residual,
    Role,
    Routing,
)
from ckptforensics.architectures.stacks import Stack, copies_of, equals, find_stacks, shown
from ckptforensics.errors import FormatError, NothingAnalysable, TensorError, UnknownFamily
from ckptforensics.tensors import TensorReader

_BRANCH_NORMS: tuple[Role, Role] = ("attention_norm", "ffn_norm")

# Why an FFN is not analysed.
_SPARSE = "its FFN keeps its largest gates only, which the linear fit does not describe"


def resolve(store: TensorReader, config: Mapping[str, Any] | None) -> Architecture:
    """Find the family of a checkpoint and the tensors of every block.

    Parameters
    ----------
    store : the checkpoint's tensors
    config : parsed `config.json`, if there is one

    Raises
    ------
    UnknownFamily
        if no family's names fit.
    TensorError
        if the family is known and a tensor is missing, misshapen or not part of its blocks.
    FormatError
        if the configuration holds impossible values.
    """
    known = Known(store, config)
    known.refuse_unanalysable()
    family = known.family()
    if family is not None and (layout := known.layout(family)) is not None:
        layout = as_old(layout, store)
        prefix = find_prefix(layout, store)
        if prefix is None:
            _refuse_several(known)
            specs = [spec for spec in layout.tensors.values() if not spec.optional]
            lost = (spec for spec in specs if not is_stored(layout, spec, store))
            example = next(lost, next(iter(layout.tensors.values())))
            raise TensorError(
                f"the configuration says '{family.name}' and no tensor is named like one",
                path=known.path,
                hint=f"expected for example '{layout.prefixes[0]}{layout.block}{example.name[0]}"
                f"{example.suffix}'".replace("{layer}", "0"),
            )
        return _build(known, family, "gguf" if known.gguf else "config", layout, prefix)
    family, layout = infer_family(known)
    try:
        return _build(known, family, "inferred", layout, layout.prefixes[0])
    except TensorError as problem:
        if known.model_type is None:
            raise
        # The family was a guess, so the type is unknown before anything is damaged.
        where = f"'{problem.tensor}': " if problem.tensor else ""
        why = f"read as '{family.name}', {where}{problem.message}"
        raise unknown(known, why) from None


def _refuse_several(known: Known) -> None:
    """NothingAnalysable if several models of one size are stored together."""
    same = equals(find_stacks(known.store) or [Stack("")])
    if len(same) > 1:
        raise NothingAnalysable(
            f"several models are stored together: {shown(same)}",
            path=known.path,
            hint="save the tensors of one of them alone",
        )


def _build(
    known: Known, family: Family, source: FamilySource, layout: Layout, prefix: str
) -> Architecture:
    store = known.store
    known.require_supported(family)
    known.notes.extend(layout.assumed)
    said = known.count(family, "num_layers")
    num_layers = said or _count_layers(layout, prefix, store)
    if known.gguf:  # the count includes the blocks that predict further tokens
        num_layers -= known.first_count((), "nextn_predict_layers") or 0
    stored = _stored_layers(layout, prefix, store)
    require_layers(known, None if said is None else num_layers, stored)
    activation = known.activation(family, inferred=source == "inferred")
    eps = known.eps(family)
    routing = _routing(known, family, num_layers)
    if source != "inferred":  # an inferred family was told by its gains
        at = layout.model_copy(update={"prefixes": (prefix,)})
        note_doubtful_gains(known, family, at, num_layers)
    layers, sizes = _plans(known, family, layout, prefix, num_layers, routing)
    scales = [
        known.scalar(scalar, sizes.hidden_size, num_layers)
        for scalar in (
            family.embedding_scale,
            family.attention_scale,
            family.ffn_scale,
            family.gate_scale,
        )
    ]
    embedding = _embedding(known, layout, prefix, sizes)
    architecture = Architecture(
        family=family,
        source=source,
        sizes=sizes,
        residual=_residual(known, family, layers),
        norm_position=cast(NormPosition, known.choice(family.norm.position)),
        eps=eps,
        activation=activation,
        gain_offset=layout.gain_offset,
        embedding=embedding,
        embedding_scale=scales[0],
        attention_scale=scales[1],
        ffn_scale=scales[2],
        gate_scale=scales[3],
        value_clip=None
        if family.value_clip is None
        else known.positive(family.value_clip, "attention.clamp_kqv"),
        ffn_clamp=known.scalar(family.ffn_clamp, sizes.hidden_size, num_layers)
        if family.ffn == "clamped"
        else None,
        latent_eps=family.norm.latent_eps or eps,
        sink_scale=known.rotary_factor() ** 2 if "sinks" in layout.tensors else 1.0,
        routing=routing,
        layers=tuple(layers),
        unused={},
        bos_token_id=known.bos_token_id(),
        notes=tuple(known.notes),
    )
    unused = _unused(store, layout, architecture, prefix)
    if source == "config" and architecture.embedding is not None:
        copies = copies_of(layers[0].prefix, architecture.embedding.tokens, store)
        if copies:
            known.notes.append(
                f"'{layers[0].prefix.rpartition('0.')[0]}' is read, and the files hold further "
                f"models of this kind: {shown(copies)}"
            )
    refuse_more_layers(known, None if said is None else num_layers, stored)
    require_agreement(known, architecture)
    return replace(architecture, unused=unused, notes=tuple(known.notes))


def _plans(
    known: Known,
    family: Family,
    layout: Layout,
    prefix: str,
    num_layers: int,
    routing: RoutingPlan | None,
) -> tuple[list[LayerPlan], Sizes]:
    """Every block's tensors, and the sizes."""
    sparsity = known.per_layer(family.sparsity, num_layers) if family.sparsity else ()
    sizes: Sizes | None = None
    layers = []
    for number in range(num_layers):  # stops at the first missing tensor, whatever num_layers says
        numbered = at_layer(layout, number)
        block = prefix + numbered.block
        resolver = BlockResolver(known, family, numbered, block, num_layers, routing)
        shown = block_prefixes(layout, prefix, number)[0]
        plan = replace(resolver.plan(), prefix=shown)
        if any(sparsity[number : number + 1]):
            plan = replace(plan, mixer=None, skipped=f"{_SPARSE}, and {plan.mixer}")
        layers.append(plan)
        # Those of the first layer with attention, if there is one.
        if sizes is None or not sizes.num_heads:
            sizes = resolver.sizes or Sizes(resolver.hidden_size(), num_layers)
    if sizes is None:
        raise UnknownFamily("the checkpoint has no layers", path=known.path)
    return layers, sizes


def _residual(known: Known, family: Family, layers: list[LayerPlan]) -> Residual:
    """How blocks add their branches; a norm that both read is only right in parallel blocks."""
    configured = known.choice(family.residual)
    # Norms by tensor name, of blocks that have both branches.
    norms = [
        [plan.refs[role].weight if role in plan.refs else None for role in _BRANCH_NORMS]
        for plan in layers
        if plan.gap is None
    ]
    shared = [a is not None and a == b for a, b in norms]
    if configured == "by-norms":
        configured = "parallel" if all(shared) else "sequential"
    if configured == "sequential" and any(shared):
        plan = [plan for plan in layers if plan.gap is None][shared.index(True)]
        spec = (family.gguf if known.gguf else family.hf) or family.hf
        name = spec.tensors["ffn_norm"]
        known.store.info(plan.prefix + name.name[0] + name.suffix)  # raises, naming the tensor
    return cast(Residual, configured)


def _count_layers(layout: Layout, prefix: str, store: TensorReader) -> int:
    number = 0
    while any(name.startswith(block_prefixes(layout, prefix, number)) for name in store):
        number += 1
    return number


def _stored_layers(layout: Layout, prefix: str, store: TensorReader) -> frozenset[int]:
    """Numbers, from 0, of the blocks of which any tensor is stored that is not known to be beside.

    Blocks beyond the stack, such as those that predict further tokens, are in `layout.unused`.
    """
    begins = tuple(begin.rpartition("0.")[0] for begin in block_prefixes(layout, prefix, 0))
    beside = [pattern for pattern, reason in layout.unused.items() if reason == "prediction"]
    found = set()
    for name in store:
        for begin in begins:
            number = name[len(begin) :].partition(".")[0]
            if begin and name.startswith(begin) and number.isdecimal():
                if not any(fnmatchcase(name, pattern) for pattern in beside):
                    found.add(int(number))
                break
    return frozenset(found)


def _routing(known: Known, family: Family, num_layers: int) -> RoutingPlan | None:
    moe = family.moe
    if moe is None:
        return None
    experts = known.first_count(moe.num_experts, "expert_count")
    top_k = known.first_count(moe.top_k, "expert_used_count")
    if experts is None or top_k is None:
        return None
    routing = cast(Routing, known.choice(moe.routing))
    groups = kept = None
    if moe.groups and moe.groups_kept and known.choice(moe.grouped) == "yes":
        groups = known.first_count((moe.groups,), "expert_group_count")
        if groups is None:
            known.note_missing("expert_group_count", "1")
        kept = known.first_count((moe.groups_kept,), "expert_group_used_count")
    groups = top_k if routing == "softmax-groups" else groups or 1
    if experts % groups or top_k > experts:
        raise FormatError(
            f"{experts} experts do not make {groups} groups, or {top_k} of them cannot be used",
            path=known.path,
        )
    hidden_size = known.count(family, "hidden_size") or 1
    return RoutingPlan(
        routing=routing,
        num_experts=experts,
        top_k=top_k,
        renormalise=known.choice(moe.renormalise) == "always",
        scale=known.scalar(moe.scale, hidden_size, num_layers),
        groups=groups,
        groups_kept=min(kept or groups, groups),
        jitter=known.scalar(moe.jitter, hidden_size, num_layers),
    )


def _embedding(known: Known, layout: Layout, prefix: str, sizes: Sizes) -> EmbeddingRefs | None:
    spec, hidden_size, store = layout.embedding, sizes.hidden_size, known.store
    if spec is None:
        return None

    def tensor(name: str | None, suffix: str = ".weight") -> str | None:
        full = None if name is None else prefix + name + suffix
        return full if full is not None and full in store else None

    tokens = tensor(spec.tokens)
    if tokens is None:
        return None
    projection = tensor(spec.projection)
    width = hidden_size if projection is None else store.info(projection).shape[-1]
    refs = EmbeddingRefs(
        tokens=tokens,
        positions=tensor(spec.positions),
        position_row=spec.position_row
        + int(known.scalar(spec.position_after, hidden_size, sizes.num_layers)),
        token_types=tensor(spec.token_types),
        norm=tensor(spec.norm, spec.norm_suffix),
        norm_bias=tensor(spec.norm, spec.norm_bias_suffix),
        projection=projection,
    )
    for name, expected in (
        (None if spec.positions_optional else spec.positions, refs.positions),
        (None if spec.token_types_optional else spec.token_types, refs.token_types),
        (spec.norm, refs.norm),
    ):
        if name is not None and expected is None:
            store.info(prefix + name + ".weight")  # raises, naming the tensor
    for name in filter(None, (tokens, refs.positions, refs.token_types)):
        info = store.info(name)
        wanted = width if name == tokens else hidden_size
        if len(info.shape) != 2 or info.shape[1] != wanted:
            raise misshapen(info, f"rows of {wanted}")
    return refs


def _unused(
    store: TensorReader, layout: Layout, architecture: Architecture, prefix: str
) -> Mapping[str, str]:
    """Why each unread tensor is not read; an unexplained one inside a block is an error."""
    used = architecture.used
    skipped = {
        name: plan.skipped
        for plan in architecture.layers
        if plan.skipped is not None
        for name, _ in plan.names()
    }
    numbers = range(len(architecture.layers))
    blocks = tuple(begin for n in numbers for begin in block_prefixes(layout, prefix, n))
    unused = {}
    for name in store:
        if name in used:
            continue
        reason = next((r for p, r in layout.unused.items() if fnmatchcase(name, p)), None)
        if name in skipped:
            unused[name] = skipped[name]
        elif reason is not None:
            unused[name] = UNUSED_REASONS[reason]
        elif name.startswith(blocks):
            # What the block does with it is not known, so anything said of it could be wrong.
            raise TensorError(
                f"blocks of the family '{architecture.family.name}' have no such tensor",
                path=store.info(name).path,
                tensor=name,
                hint="the checkpoint belongs to another architecture; see docs/families.md",
            )
        else:
            unused[name] = "outside the blocks" if name.startswith(prefix) else "another component"
    return MappingProxyType(unused)
