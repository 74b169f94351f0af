"""Match a checkpoint against the families: which tensor plays which role, at which size.

Works on names, shapes and configuration only; no weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal, cast

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
    families,
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
_EXPERT_ROLES = frozenset({"expert_gate", "expert_up", "expert_down"})
_ATTENTION_ROLES = frozenset({"value", "output"})


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
    """

    weight: str
    bias: str | None
    transposed: bool = False
    ranges: Ranges | None = None
    step: int = 1
    start: int = 0
    expert: int | None = None


@dataclass(frozen=True)
class RoutingPlan:
    """How a router weighs the experts of a layer; see `MoeSpec`."""

    routing: Routing
    num_experts: int
    top_k: int
    scale: float
    groups: int
    groups_kept: int


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
    known.refuse_quantized()
    family = known.family()
    if family is not None and (layout := known.layout(family)) is not None:
        prefix = _prefix(layout, store)
        if prefix is None:
            example = next(iter(layout.tensors.values()))
            raise TensorError(
                f"the configuration says '{family.name}' and no tensor is named like one",
                path=known.path,
                hint=f"expected for example '{layout.prefixes[0]}{layout.block.format(layer=0)}"
                f"{example.name[0]}{example.suffix}'",
            )
        return _build(known, family, "gguf" if known.gguf else "config", layout, prefix)
    return _infer(known)


def _infer(known: Known) -> Architecture:
    matches = []
    for family in families().values():
        layout = known.layout(family)
        if (
            family.inferable
            and layout is not None
            and (prefix := _prefix(layout, known.store)) is not None
        ):
            matches.append((family, layout, prefix))
    if len(matches) != 1:
        said = f"'{known.model_type}'" if known.model_type else "a model without configuration"
        fits = ", ".join(family.name for family, _, _ in matches)
        raise UnknownFamily(
            f"no family is named {said}, and the tensor names fit "
            + (f"several ({fits})" if matches else "none"),
            path=known.path,
            hint="see docs/families.md for the supported families and how to add one",
        )
    return _build(known, matches[0][0], "inferred", *matches[0][1:])


def _prefix(layout: Layout, store: TensorStore) -> str | None:
    """The first prefix under which some block has every weight the layout requires."""
    required = [spec for spec in layout.tensors.values() if not spec.optional]
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
    num_layers = known.count(family, "num_layers") or _count_layers(layout, prefix, store)
    activation = known.activation(family, inferred=source == "inferred")
    eps = known.eps(family)
    routing = _routing(known, family, num_layers)
    sizes: Sizes | None = None
    layers = []
    for number in range(num_layers):  # stops at the first missing tensor, whatever num_layers says
        block = prefix + layout.block.format(layer=number)
        resolver = _BlockResolver(known, family, layout, block, num_layers, routing)
        layers.append(resolver.plan())
        sizes = sizes or resolver.sizes
    if sizes is None:
        raise UnknownFamily("no layer has attention that can be analysed", path=known.path)
    scales = [
        known.scalar(scalar, sizes.hidden_size, num_layers)
        for scalar in (family.embedding_scale, family.attention_scale, family.ffn_scale)
    ]
    embedding = _embedding(layout, prefix, sizes.hidden_size, store)
    architecture = Architecture(
        family=family,
        source=source,
        sizes=sizes,
        residual=cast(Residual, known.choice(family.residual)),
        norm_position=cast(NormPosition, known.choice(family.norm.position)),
        eps=eps,
        activation=activation,
        gain_offset=layout.gain_offset,
        embedding=embedding,
        embedding_scale=scales[0],
        attention_scale=scales[1],
        ffn_scale=scales[2],
        value_clip=None if family.value_clip is None else known.positive(family.value_clip),
        routing=routing,
        layers=tuple(layers),
        unused={},
        bos_token_id=known.bos_token_id(),
        notes=tuple(known.notes),
    )
    unused = _unused(store, layout, architecture, prefix)
    return Architecture(**{**architecture.__dict__, "unused": unused})


def _count_layers(layout: Layout, prefix: str, store: TensorStore) -> int:
    number = 0
    while any(name.startswith(prefix + layout.block.format(layer=number)) for name in store):
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
    renormalise = known.value(moe.renormalise, "expert_weights_norm")
    if routing == "softmax" and renormalise:
        routing = "softmax-top"
    groups = known.first_count((moe.groups,), "expert_group_count") if moe.groups else None
    kept = (
        known.first_count((moe.groups_kept,), "expert_group_used_count")
        if (moe.groups_kept)
        else None
    )
    hidden_size = known.count(family, "hidden_size") or 1
    return RoutingPlan(
        routing=routing,
        num_experts=experts,
        top_k=min(top_k, experts),
        scale=known.scalar(moe.scale, hidden_size, num_layers),
        groups=groups or 1,
        groups_kept=kept or groups or 1,
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
        if present >= _ATTENTION_ROLES:
            self.sizes = self._sizes()
        else:
            mixer = UNUSED_REASONS["mixer"]
            present -= {r for r in present if r.startswith("attention")} | _ATTENTION_ROLES
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
        return LayerPlan(self.block, MappingProxyType(refs), experts, mixer)

    def _present(self) -> set[Role]:
        """Roles the block has; TensorError naming the tensor if a required one is missing."""
        present: set[Role] = set()
        for role, spec in self.layout.tensors.items():
            if _find(self.block, spec, self.store) is not None:
                present.add(role)
            elif not spec.optional:
                self.store.info(f"{self.block}{spec.name[0]}{spec.suffix}".replace("{expert}", "0"))
        if "down" not in present and "router" not in present:
            spec = self.layout.tensors.get("down") or self.layout.tensors["expert_down"]
            self.store.info(f"{self.block}{spec.name[0]}{spec.suffix}".replace("{expert}", "0"))
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
        shape = info.shape[1:] if spec.stacked else info.shape
        if len(shape) != 2:
            raise _misshapen(info, "a stack of matrices" if spec.stacked else "a matrix")
        return (shape[1], shape[0]) if spec.transposed else (shape[0], shape[1])

    def _hidden_size(self) -> int:
        configured = self.known.count(self.family, "hidden_size")
        if configured is not None:
            return configured
        role: Role = (
            "output" if _find(self.block, self.layout.tensors["output"], self.store) else "down"
        )
        return self._matrix(role)[0]

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
        if role in ("sinks", "latent_norm", "router_correction"):
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
            experts = info.shape[0] if spec.stacked else 1
            self._require_size(self.store.info(bias), rows * experts)
        if spec.stacked and self.routing is not None and info.shape[0] != self.routing.num_experts:
            raise _misshapen(info, f"{self.routing.num_experts} experts")
        index = expert if spec.stacked else None
        return WeightRef(info.name, bias, spec.transposed, ranges, step, start, index)

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
            if rows % heads or rows // heads <= width:
                raise _misshapen(info, f"more than {width} rows for each of {heads} heads")
            per_head = rows // heads
            first = take == "query:q"
            begins = (h * per_head + (0 if first else per_head - width) for h in range(heads))
            return tuple((b, b + width) for b in begins), 1, 0
        if take.startswith("qkv:"):
            q, kv = heads * width, kv_heads * width
            begin = {"q": 0, "k": q, "v": q + kv}[take[-1]]
            return ((begin, begin + (q if take[-1] == "q" else kv)),), 1, 0
        queries = 1 if take == "heads:v" else heads // kv_heads
        groups = heads if take == "heads:v" else kv_heads
        ends = (width * (queries + 2) * (g + 1) for g in range(groups))
        return tuple((end - width, end) for end in ends), 1, 0

    def _require_size(self, info: TensorInfo, size: int) -> None:
        if math.prod(info.shape) != size:
            raise _misshapen(info, f"{size} elements")


def _embedding(
    layout: Layout, prefix: str, hidden_size: int, store: TensorStore
) -> EmbeddingRefs | None:
    spec = layout.embedding

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
        position_row=spec.position_row,
        token_types=tensor(spec.token_types),
        norm=tensor(spec.norm),
        norm_bias=tensor(spec.norm, ".bias"),
        projection=projection,
    )
    for name, expected in (
        (spec.positions, refs.positions),
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
    blocks = tuple(plan.prefix for plan in architecture.layers)
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
        else:
            unused[name] = "outside the blocks" if name.startswith(prefix) else "another component"
    return MappingProxyType(unused)


def _misshapen(info: TensorInfo, expected: str) -> TensorError:
    shape = " x ".join(str(n) for n in info.shape) or "a scalar"
    return TensorError(
        f"the shape is {shape}, expected {expected}", path=info.path, tensor=info.name
    )
