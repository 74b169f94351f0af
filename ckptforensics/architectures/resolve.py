"""Match a checkpoint against the families: which tensor plays which role, at which size.

Works on names, shapes and configuration only; no weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal, cast

from ckptforensics.architectures.infer import infer_family
from ckptforensics.architectures.known import Known
from ckptforensics.architectures.schema import (
    UNUSED_REASONS,
    Family,
    Layout,
    NormPosition,
    Residual,
    Role,
    Routing,
    TensorSpec,
)
from ckptforensics.errors import FormatError, TensorError, UnknownFamily
from ckptforensics.tensors import TensorInfo, TensorStore

FamilySource = Literal["config", "gguf", "inferred"]
Ranges = tuple[tuple[int, int], ...]

_VECTORS = frozenset(
    {
        "attention_norm",
        "attention_post_norm",
        "attention_after_norm",
        "attention_scale",
        "ffn_norm",
        "ffn_post_norm",
        "ffn_after_norm",
        "ffn_scale",
    }
)
_EXPERT_ROLES: frozenset[Role] = frozenset({"expert_gate", "expert_up", "expert_down"})
_BRANCH_NORMS: tuple[Role, Role] = ("attention_norm", "ffn_norm")
_ATTENTION_ROLES: tuple[Role, ...] = ("value", "output")
_MIXING_ROLES = frozenset(
    {"query", "key", "value", "output", "sinks", "latent", "latent_norm"},
)
_FFN_GROUPS: tuple[frozenset[Role], ...] = (
    frozenset({"gate", "up", "down"}),
    frozenset({"router", *_EXPERT_ROLES}),
    frozenset({"shared_gate", "shared_up", "shared_down"}),
)


# Why a further block is not read.
_BEYOND = "beyond the configured number of layers"


@dataclass(frozen=True)
class Sizes:
    """Widths and counts; `head_dim` is that of the value heads."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class WeightRef:
    """The stored tensors of one role.

    Attributes
    ----------
    weight, bias : tensor names; no bias is None
    transposed : stored (in, out)
    ranges : output rows that belong to the role, None for all
    step : 2 with `start` 0 or 1 takes every second output row
    start : see `step`
    expert : index on the first axis of a stacked tensor, None for tensors of their own
    expert_rows : rows that the stacked tensor, seen as a matrix, holds for each expert
    split_heads : the stored tensor's last two axes are one axis of the matrix
    """

    weight: str
    bias: str | None
    transposed: bool = False
    ranges: Ranges | None = None
    step: int = 1
    start: int = 0
    expert: int | None = None
    expert_rows: int = 0
    split_heads: bool = False


@dataclass(frozen=True)
class RoutingPlan:
    """How a router weighs the experts of a layer; see `MoeSpec`."""

    routing: Routing
    num_experts: int
    top_k: int
    renormalise: bool
    scale: float
    groups: int
    groups_kept: int
    jitter: float


@dataclass(frozen=True)
class LayerPlan:
    """The tensors of one block.

    Attributes
    ----------
    prefix : of its tensors
    refs : role to tensors
    experts : role to tensors, of each expert
    mixer : why there is no attention to analyse, None where there is
    """

    prefix: str
    refs: Mapping[Role, WeightRef]
    experts: tuple[Mapping[Role, WeightRef], ...] = ()
    mixer: str | None = None


@dataclass(frozen=True)
class EmbeddingRefs:
    """Tensors that make the residual stream before the first block; see `EmbeddingSpec`."""

    tokens: str
    positions: str | None = None
    position_row: int = 0
    token_types: str | None = None
    norm: str | None = None
    norm_bias: str | None = None
    projection: str | None = None

    def names(self) -> Iterator[tuple[str, str]]:
        """Tensor and what it is used as."""
        for name, role in (
            (self.tokens, "embedding"),
            (self.positions, "positions"),
            (self.token_types, "token types"),
            (self.norm, "embedding norm"),
            (self.norm_bias, "embedding norm"),
            (self.projection, "embedding projection"),
        ):
            if name is not None:
                yield name, role


@dataclass(frozen=True)
class Architecture:
    """How to read a checkpoint as a stack of residual blocks.

    Attributes
    ----------
    family, source : the family and how it was found
    sizes : widths and counts
    residual, norm_position : of the blocks
    eps, activation, gain_offset : of norms and FFN
    embedding : None where the files lack it
    embedding_scale, attention_scale, ffn_scale : factors, see `Family`
    value_clip : bound on the values' size, None for none
    ffn_clamp : bound of gate and up in gpt-oss's kind of FFN, None for other kinds
    latent_eps : epsilon of the norm inside MLA
    sink_scale : factor on the scores that compete with a learned sink
    routing : of the experts, None without experts
    layers : the tensors of each block
    unused : tensor to the reason why it is not read
    bos_token_id : None if the checkpoint names none
    notes : what was assumed because the checkpoint does not say it
    """

    family: Family
    source: FamilySource
    sizes: Sizes
    residual: Residual
    norm_position: NormPosition
    eps: float
    activation: str
    gain_offset: float
    embedding: EmbeddingRefs | None
    embedding_scale: float
    attention_scale: float
    ffn_scale: float
    value_clip: float | None
    ffn_clamp: float | None
    latent_eps: float
    sink_scale: float
    routing: RoutingPlan | None
    layers: tuple[LayerPlan, ...]
    unused: Mapping[str, str]
    bos_token_id: int | None
    notes: tuple[str, ...]

    @property
    def used(self) -> Mapping[str, str]:
        """Tensor to the role or roles it plays."""
        roles: dict[str, str] = {}

        def add(name: str | None, role: str) -> None:
            if name is not None and role not in roles.get(name, "").split(", "):
                roles[name] = f"{roles[name]}, {role}" if name in roles else role

        for plan in self.layers:
            for refs in (plan.refs, *plan.experts):
                for role, ref in refs.items():
                    add(ref.weight, role)
                    add(ref.bias, role)
        for name, use in self.embedding.names() if self.embedding else ():
            add(name, use)
        return roles


def resolve(store: TensorStore, config: Mapping[str, Any] | None) -> Architecture:
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
        layout = _as_old(layout, store)
        prefix = _prefix(layout, store)
        if prefix is None:
            example = next(iter(layout.tensors.values()))
            raise TensorError(
                f"the configuration says '{family.name}' and no tensor is named like one",
                path=known.path,
                hint=f"expected for example '{layout.prefixes[0]}{layout.block}{example.name[0]}"
                f"{example.suffix}'".replace("{layer}", "0"),
            )
        return _build(known, family, "gguf" if known.gguf else "config", layout, prefix)
    family, layout = infer_family(known)
    return _build(known, family, "inferred", layout, layout.prefixes[0])


def _as_old(layout: Layout, store: TensorStore) -> Layout:
    """The layout with the old names of gains and biases, if the checkpoint has these."""
    old = layout.old_norm_suffixes
    if old is None or not any(name.endswith(old[0]) for name in store):
        return layout
    tensors = {
        role: spec.model_copy(update={"suffix": old[0], "bias_suffix": old[1]})
        if role.endswith("_norm")
        else spec
        for role, spec in layout.tensors.items()
    }
    update: dict[str, Any] = {"tensors": tensors}
    if layout.embedding is not None:
        suffixes = {"norm_suffix": old[0], "norm_bias_suffix": old[1]}
        update["embedding"] = layout.embedding.model_copy(update=suffixes)
    return layout.model_copy(update=update)


def _at_layer(layout: Layout, layer: int | str) -> Layout:
    """The layout with the layer's number in every name that stands for all layers."""
    if "{layer}" in layout.block:
        return layout.model_copy(update={"block": layout.block.replace("{layer}", str(layer))})
    tensors = {
        role: spec.model_copy(
            update={"name": tuple(n.replace("{layer}", str(layer)) for n in spec.name)}
        )
        for role, spec in layout.tensors.items()
    }
    return layout.model_copy(update={"tensors": tensors})


def _block_prefixes(layout: Layout, prefix: str, layer: int) -> tuple[str, ...]:
    """What the names of all tensors of a block begin with: one prefix, or several."""
    if "{layer}" in layout.block:
        return (prefix + layout.block.replace("{layer}", str(layer)),)
    begins = (n.partition("{layer}")[0] for spec in layout.tensors.values() for n in spec.name)
    return tuple(dict.fromkeys(f"{prefix}{layout.block}{begin}{layer}." for begin in begins))


def _prefix(layout: Layout, store: TensorStore) -> str | None:
    """The first prefix under which some block has every weight the layout requires."""
    required = [spec for spec in layout.tensors.values() if not spec.optional]
    if "{layer}" not in layout.block:
        required = [s for s in _at_layer(layout, 0).tensors.values() if not s.optional]
        blocks_at = {prefix: prefix + layout.block for prefix in layout.prefixes}
        fit = (p for p, b in blocks_at.items() if any(_find(b, s, store) for s in required))
        return next(fit, None)
    for prefix in layout.prefixes:
        begin, _, end = (prefix + layout.block).partition("{layer}")
        blocks = {
            begin + name[len(begin) :].split(end, 1)[0] + end
            for name in store
            if name.startswith(begin) and end in name[len(begin) :]
        }
        # All in one block; or, in a damaged checkpoint, each in some block: what a block lacks
        # is then reported by name.
        if blocks and all(any(_find(b, spec, store) for b in blocks) for spec in required):
            return prefix
    return None


def _find(block: str, spec: TensorSpec, store: TensorStore, expert: int = 0) -> str | None:
    """Full name, without suffix, of the first of the spec's names that exists."""
    for name in spec.name:
        full = block + name.replace("{expert}", str(expert))
        if full + spec.suffix in store:
            return full
    return None


def _build(
    known: Known, family: Family, source: FamilySource, layout: Layout, prefix: str
) -> Architecture:
    store = known.store
    known.require_supported(family)
    num_layers = known.count(family, "num_layers") or _count_layers(layout, prefix, store)
    if known.gguf:  # the count includes the blocks that predict further tokens
        num_layers -= known.first_count((), "nextn_predict_layers") or 0
    activation = known.activation(family, inferred=source == "inferred")
    eps = known.eps(family)
    routing = _routing(known, family, num_layers)
    sizes: Sizes | None = None
    layers = []
    for number in range(num_layers):  # stops at the first missing tensor, whatever num_layers says
        numbered = _at_layer(layout, number)
        block = prefix + numbered.block
        resolver = _BlockResolver(known, family, numbered, block, num_layers, routing)
        shown = _block_prefixes(layout, prefix, number)[0]
        layers.append(replace(resolver.plan(), prefix=shown))
        sizes = sizes or resolver.sizes
    if sizes is None:
        raise UnknownFamily("no layer has attention that can be analysed", path=known.path)
    scales = [
        known.scalar(scalar, sizes.hidden_size, num_layers)
        for scalar in (family.embedding_scale, family.attention_scale, family.ffn_scale)
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
    if beyond := sum(reason == _BEYOND for reason in unused.values()):
        known.notes.append(
            f"{beyond} tensors belong to blocks beyond the configured {num_layers} layers"
        )
    return replace(architecture, unused=unused, notes=tuple(known.notes))


def _residual(known: Known, family: Family, layers: list[LayerPlan]) -> Residual:
    """How blocks add their branches; a norm that both read is only right in parallel blocks."""
    configured = known.choice(family.residual)
    # Norms by tensor name, of blocks that have both branches.
    norms = [
        [plan.refs[role].weight if role in plan.refs else None for role in _BRANCH_NORMS]
        for plan in layers
        if plan.mixer is None
    ]
    shared = [a is not None and a == b for a, b in norms]
    if configured == "by-norms":
        configured = "parallel" if all(shared) else "sequential"
    if configured == "sequential" and any(shared):
        plan = [plan for plan in layers if plan.mixer is None][shared.index(True)]
        spec = (family.gguf if known.gguf else family.hf) or family.hf
        name = spec.tensors["ffn_norm"]
        known.store.info(plan.prefix + name.name[0] + name.suffix)  # raises, naming the tensor
    return cast(Residual, configured)


def _count_layers(layout: Layout, prefix: str, store: TensorStore) -> int:
    number = 0
    while any(name.startswith(_block_prefixes(layout, prefix, number)) for name in store):
        number += 1
    return number


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


class _BlockResolver:
    """Finds and checks the tensors of one block."""

    def __init__(
        self,
        known: Known,
        family: Family,
        layout: Layout,
        block: str,
        num_layers: int,
        routing: RoutingPlan | None,
    ) -> None:
        self.known, self.family, self.layout = known, family, layout
        self.block, self.num_layers, self.routing = block, num_layers, routing
        self.store = known.store
        self.sizes: Sizes | None = None

    def plan(self) -> LayerPlan:
        """The block's tensors; TensorError if one is missing or misshapen."""
        present = self._present()
        mixer = None
        if present & set(_ATTENTION_ROLES) or not self._has_mixer():
            self._require(present, _ATTENTION_ROLES)
            self.sizes = self._sizes()
        else:
            mixer = UNUSED_REASONS["mixer"]
            present -= {r for r in present if r.startswith("attention")} | _MIXING_ROLES
        hidden_size = self.sizes.hidden_size if self.sizes else self._hidden_size()
        refs: dict[Role, WeightRef] = {}
        width: dict[str, int] = {}
        for role, spec in self.layout.tensors.items():
            if role in present and role not in _EXPERT_ROLES:
                refs[role] = self._ref(role, spec, hidden_size, width)
        experts: tuple[Mapping[Role, WeightRef], ...] = ()
        if "router" in present and self.routing is not None:
            experts = tuple(
                MappingProxyType(
                    {
                        role: self._ref(role, spec, hidden_size, width, expert)
                        for role, spec in self.layout.tensors.items()
                        if role in _EXPERT_ROLES
                    }
                )
                for expert in range(self.routing.num_experts)
            )
        if "down" not in refs and not experts:
            # A layer without routed experts whose shared one is all of its FFN.
            shared: tuple[tuple[Role, Role], ...] = (
                ("gate", "shared_gate"),
                ("up", "shared_up"),
                ("down", "shared_down"),
            )
            refs |= {role: refs.pop(other) for role, other in shared if other in refs}
        return LayerPlan(self.block, MappingProxyType(refs), experts, mixer)

    def _has_mixer(self) -> bool:
        """Whether a tensor of the block is known to mix tokens otherwise than by attention."""
        patterns = [p for p, r in self.layout.unused.items() if r == "mixer"]
        norm = self.layout.tensors.get("attention_norm")
        own = tuple(self.block + name for name in norm.name) if norm else ()
        return any(
            fnmatchcase(name, pattern)
            for name in (self.store if patterns else ())
            if name.startswith(self.block) and not name.startswith(own)
            for pattern in patterns
        )

    def _require(self, present: set[Role], roles: Iterable[Role]) -> None:
        """TensorError naming the first of the roles the block lacks though the family has it."""
        for role in roles:
            spec = self.layout.tensors.get(role)
            if spec is not None and role not in present:
                self.store.info(f"{self.block}{spec.name[0]}{spec.suffix}".replace("{expert}", "0"))

    def _present(self) -> set[Role]:
        """Roles the block has; TensorError naming the tensor if a required one is missing."""
        present: set[Role] = set()
        for role, spec in self.layout.tensors.items():
            if _find(self.block, spec, self.store) is not None:
                present.add(role)
            elif not spec.optional:
                self.store.info(f"{self.block}{spec.name[0]}{spec.suffix}".replace("{expert}", "0"))
        if not present & {"down", "router", "shared_down"}:
            self._require(present, ("down", "expert_down"))
        # An FFN without one of its parts is not a smaller FFN.
        for group in _FFN_GROUPS:
            specs = [self.layout.tensors[role] for role in group if role in self.layout.tensors]
            if present & group and all(spec.optional for spec in specs):
                self._require(present, sorted(group))
        if "router" in present and self.routing is None:
            raise FormatError(
                "the block has experts and the configuration does not say how many are used",
                path=self.known.path,
                tensor=self.block.rstrip("."),
            )
        return present

    def _info(self, role: Role, expert: int = 0) -> TensorInfo:
        spec = self.layout.tensors[role]
        name = _find(self.block, spec, self.store, expert)
        if name is None:
            missing = f"{self.block}{spec.name[0]}{spec.suffix}".replace("{expert}", str(expert))
            return self.store.info(missing)  # raises, naming the tensor
        return self.store.info(name + spec.suffix)

    def _matrix(self, role: Role, expert: int = 0) -> tuple[int, int]:
        """Output rows and input columns of a role's stored matrix, one expert's of a stack."""
        info, spec = self._info(role, expert), self.layout.tensors[role]
        shape = info.shape[1:] if spec.stacked is True else info.shape
        if spec.split_heads and len(shape) == 3:
            shape = (shape[0], shape[1] * shape[2])
        if spec.take == "latent:v" and len(shape) == 3:  # by heads
            shape = (shape[0] * shape[1], shape[2])
        if spec.stacked == "rows" and self.routing is not None and len(shape) == 2:
            shape = (shape[0] // self.routing.num_experts, shape[1])
        if len(shape) != 2:
            raise _misshapen(info, "a stack of matrices" if spec.stacked else "a matrix")
        if spec.transposed and not info.oriented:
            return shape[1], shape[0]
        return shape[0], shape[1]

    def _hidden_size(self) -> int:
        configured = self.known.count(self.family, "hidden_size")
        if configured is not None:
            return configured
        role: Role = (
            "output" if _find(self.block, self.layout.tensors["output"], self.store) else "down"
        )
        rows = self._matrix(role)[0]
        if rows == 0:
            raise _misshapen(self._info(role), "at least one row")
        return rows

    def _sizes(self) -> Sizes:
        """Sizes of the heads from shapes; only their number needs the configuration."""
        hidden_size = self._hidden_size()
        inner = self._matrix("output")[1]
        rows = self._matrix("value")[0]
        take = self.layout.tensors["value"].take
        heads = self.known.count(self.family, "num_heads")
        if heads is None:
            # Without a head count: where values are not shared between heads it does not matter.
            alone = rows // 3 if take == "qkv:v" else rows
            if alone != inner or take not in ("all", "qkv:v"):
                raise UnknownFamily(
                    "the heads share values and nothing says how many heads there are",
                    path=self.known.path,
                    hint="put config.json beside the weights or name it with --config",
                )
            note = "head count not given; it does not enter the result"
            if note not in self.known.notes:
                self.known.notes.append(note)
            return Sizes(hidden_size, self.num_layers, 1, 1, inner)
        if inner % heads:
            raise _misshapen(self._info("output"), f"columns that divide among {heads} heads")
        head_dim = inner // heads
        if take == "latent:v":
            kv_heads = heads
        elif take == "all":
            kv_heads = rows // head_dim
        else:  # q, k and v in one tensor
            kv_heads = (rows // head_dim - heads) // 2
        whole = {"all": kv_heads, "latent:v": None}.get(take, heads + 2 * kv_heads)
        if kv_heads < 1 or heads % kv_heads or (whole is not None and rows != whole * head_dim):
            raise _misshapen(
                self._info("value"), f"values for {heads} heads of {head_dim}, shared evenly"
            )
        return Sizes(hidden_size, self.num_layers, heads, kv_heads, head_dim)

    def _ref(
        self,
        role: Role,
        spec: TensorSpec,
        hidden_size: int,
        width: dict[str, int],
        expert: int | None = None,
    ) -> WeightRef:
        info = self._info(role, expert or 0)
        stem = info.name.removesuffix(spec.suffix) if spec.suffix else info.name
        bias = stem + spec.bias_suffix if stem + spec.bias_suffix in self.store else None
        if bias == info.name:
            bias = None
        if role in _VECTORS:
            self._require_size(info, hidden_size)
            if bias is not None:
                self._require_size(self.store.info(bias), hidden_size)
            return WeightRef(info.name, bias)
        if role in ("router_correction", "router_scale") and self.routing is not None:
            self._require_size(info, self.routing.num_experts)
        if role == "sinks" and self.sizes is not None:
            self._require_size(info, self.sizes.num_heads)
        if role in ("sinks", "latent_norm", "router_correction", "router_scale"):
            return WeightRef(info.name, bias)
        rows, columns = self._matrix(role, expert or 0)
        ranges, step, start = self._share(spec, rows, info)
        if ranges is not None:
            taken = sum(b - a for a, b in ranges)
        else:
            taken = len(range(start, rows, step))
        expected = self._expected(role, hidden_size, width, taken, columns)
        if (taken, columns) != expected:
            raise _misshapen(info, f"{expected[0]} x {expected[1]} for the role '{role}'")
        if bias is not None:
            experts = self.routing.num_experts if spec.stacked and self.routing is not None else 1
            self._require_size(self.store.info(bias), rows * experts)
        transposed = spec.transposed and not info.oriented
        expert_rows = 0
        if spec.stacked and self.routing is not None:
            expert_rows = columns if transposed else rows
            if math.prod(info.shape[:-1]) != expert_rows * self.routing.num_experts:
                raise _misshapen(info, f"{self.routing.num_experts} experts")
        index = expert if spec.stacked else None
        split = spec.split_heads
        return WeightRef(
            info.name, bias, transposed, ranges, step, start, index, expert_rows, split
        )

    def _expected(
        self, role: Role, hidden_size: int, width: dict[str, int], rows: int, columns: int
    ) -> tuple[int, int]:
        """The shape a role must have, given those found before it."""
        kind, _, part = role.rpartition("_")
        if part in ("gate", "up") and role != "attention_gate":
            return width.setdefault(kind, rows), hidden_size
        if part == "down":
            return hidden_size, width.setdefault(kind, columns)
        if role == "router":
            assert self.routing is not None
            return self.routing.num_experts, hidden_size
        if role == "shared_router":
            return 1, hidden_size
        sizes = self.sizes
        assert sizes is not None
        inner = sizes.num_heads * sizes.head_dim
        if role == "output":
            return hidden_size, inner
        if role == "value":
            if "latent" in self.layout.tensors:
                return inner, self.known.count(self.family, "latent_width") or columns
            return sizes.num_kv_heads * sizes.head_dim, hidden_size
        if role == "attention_gate":
            return inner, hidden_size
        return rows, hidden_size  # query, key, latent: any number of rows

    def _share(
        self, spec: TensorSpec, rows: int, info: TensorInfo
    ) -> tuple[Ranges | None, int, int]:
        """Output rows of a fused tensor that belong to the role, as ranges or a step and start."""
        take = spec.take
        if take == "all":
            return None, 1, 0
        if take in ("half:1", "half:2", "even", "odd"):
            if rows % 2:
                raise _misshapen(info, "an even number of rows")
            if take in ("even", "odd"):
                return None, 2, 1 if take == "odd" else 0
            return (((0, rows // 2),) if take == "half:1" else ((rows // 2, rows),)), 1, 0
        sizes = self.sizes
        assert sizes is not None
        heads, kv_heads, width = sizes.num_heads, sizes.num_kv_heads, sizes.head_dim
        if take == "latent:c":
            rank = self.known.count(self.family, "latent_width")
            if rank is None or rank > rows:
                raise _misshapen(info, f"at least kv_lora_rank ({rank}) rows")
            return ((0, rank),), 1, 0
        if take in ("latent:v", "query:q", "query:gate"):
            # A head's rows are [key or query, value or gate].
            if rows % heads or rows // heads < width:
                raise _misshapen(info, f"more than {width} rows for each of {heads} heads")
            per_head = rows // heads
            first = take == "query:q"
            begins = (h * per_head + (0 if first else per_head - width) for h in range(heads))
            return tuple((b, b + width) for b in begins), 1, 0
        if take.startswith("qkv:"):
            q, kv = heads * width, kv_heads * width
            begin = {"q": 0, "k": q, "v": q + kv}[take[-1]]
            return ((begin, begin + (q if take[-1] == "q" else kv)),), 1, 0
        if take == "quarters:v":
            part, odd = divmod(rows, 12)
            if odd:
                raise _misshapen(info, "rows that divide into four parts of q, v and k")
            return tuple((part * (3 * n + 1), part * (3 * n + 2)) for n in range(4)), 1, 0
        queries = 1 if take == "heads:v" else heads // kv_heads
        groups = heads if take == "heads:v" else kv_heads
        ends = (width * (queries + 2) * (g + 1) for g in range(groups))
        return tuple((end - width, end) for end in ends), 1, 0

    def _require_size(self, info: TensorInfo, size: int) -> None:
        if math.prod(info.shape) != size:
            raise _misshapen(info, f"{size} elements")


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
        (spec.token_types, refs.token_types),
        (spec.norm, refs.norm),
    ):
        if name is not None and expected is None:
            store.info(prefix + name + ".weight")  # raises, naming the tensor
    for name in filter(None, (tokens, refs.positions, refs.token_types)):
        info = store.info(name)
        wanted = width if name == tokens else hidden_size
        if len(info.shape) != 2 or info.shape[1] != wanted:
            raise _misshapen(info, f"rows of {wanted}")
    return refs


def _unused(
    store: TensorStore, layout: Layout, architecture: Architecture, prefix: str
) -> Mapping[str, str]:
    """Why each unread tensor is not read; an unexplained one inside a block is an error."""
    used = architecture.used
    numbers = range(len(architecture.layers))
    blocks = tuple(begin for n in numbers for begin in _block_prefixes(layout, prefix, n))
    any_block = tuple(begin.rpartition("0.")[0] for begin in _block_prefixes(layout, prefix, 0))
    unused = {}
    for name in store:
        if name in used:
            continue
        reason = next((r for p, r in layout.unused.items() if fnmatchcase(name, p)), None)
        if reason is not None:
            unused[name] = UNUSED_REASONS[reason]
        elif name.startswith(blocks):
            # What the block does with it is not known, so anything said of it could be wrong.
            raise TensorError(
                f"blocks of the family '{architecture.family.name}' have no such tensor",
                path=store.info(name).path,
                tensor=name,
                hint="the checkpoint belongs to another architecture; see docs/families.md",
            )
        elif any(b and name.startswith(b) and name[len(b) :][:1].isdecimal() for b in any_block):
            unused[name] = _BEYOND
        else:
            unused[name] = "outside the blocks" if name.startswith(prefix) else "another component"
    return MappingProxyType(unused)


def _misshapen(info: TensorInfo, expected: str) -> TensorError:
    shape = " x ".join(str(n) for n in info.shape) or "a scalar"
    return TensorError(
        f"the shape is {shape}, expected {expected}", path=info.path, tensor=info.name
    )
