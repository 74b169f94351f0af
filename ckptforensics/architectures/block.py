"""Find and check the tensors of one block: names, shapes and configuration only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType

from ckptforensics.architectures.known import Known
from ckptforensics.architectures.names import find
from ckptforensics.architectures.plan import LayerPlan, Ranges, RoutingPlan, Sizes, WeightRef
from ckptforensics.architectures.schema import (
    MIXERS,
    UNUSED_REASONS,
    Family,
    Layout,
    Role,
    TensorSpec,
)
from ckptforensics.errors import FormatError, NothingAnalysable, TensorError, UnknownFamily
from ckptforensics.tensors import TensorInfo

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
_ATTENTION_ROLES: tuple[Role, ...] = ("value", "output")
_MIXING_ROLES = frozenset(
    {"query", "key", "value", "output", "sinks", "latent", "latent_norm"},
)
_FFN_GROUPS: tuple[frozenset[Role], ...] = (
    frozenset({"gate", "up", "down"}),
    frozenset({"router", *_EXPERT_ROLES}),
    frozenset({"shared_gate", "shared_up", "shared_down"}),
)


class BlockResolver:
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
        mixer = skipped = None
        if not present & set(_ATTENTION_ROLES):
            mixer = self._mixer()
        if mixer is None and "value" in self.layout.tensors:
            self._require(present, _ATTENTION_ROLES)
            self.sizes = self._sizes()
        else:
            present -= {r for r in present if r.startswith("attention")} | _MIXING_ROLES
        if not present & {"down", "router", "shared_down"}:
            if mixer is None:
                self._require(present, ("down", "expert_down"))
                raise TensorError(
                    "the block has no tensors that the family knows",
                    path=self.known.path,
                    tensor=self.block.rstrip("."),
                )
            # A norm that is no FFN's in this layer.
            present.clear()
            mixer, skipped = None, f"{mixer}, and it has no FFN"
        hidden_size = self.hidden_size()
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
        return LayerPlan(self.block, MappingProxyType(refs), experts, mixer, skipped)

    def _mixer(self) -> str | None:
        """Why what mixes tokens in the block is not analysed; None if the block has no such thing.

        A norm that precedes any kind of mixer says nothing.
        """
        patterns = {p: r for p, r in self.layout.unused.items() if r in MIXERS}
        own = tuple(self.block + name for s in self.layout.tensors.values() for name in s.name)
        reasons = (
            UNUSED_REASONS[reason]
            for name in (self.store if patterns else ())
            if name.startswith(self.block) and not name.startswith(own)
            for pattern, reason in patterns.items()
            if fnmatchcase(name, pattern)
        )
        return next(reasons, None)

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
            if find(self.block, spec, self.store) is not None:
                present.add(role)
            elif not spec.optional:
                self.store.info(f"{self.block}{spec.name[0]}{spec.suffix}".replace("{expert}", "0"))
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
        name = find(self.block, spec, self.store, expert)
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
        if role == "shared_router" and len(shape) == 1:  # older GGUF files
            shape = (1, *shape)
        if spec.stacked == "rows" and self.routing is not None and len(shape) == 2:
            shape = (shape[0] // self.routing.num_experts, shape[1])
        if len(shape) != 2:
            raise misshapen(info, "a stack of matrices" if spec.stacked else "a matrix")
        if spec.transposed and not info.oriented:
            return shape[1], shape[0]
        return shape[0], shape[1]

    def hidden_size(self) -> int:
        """Width of the residual stream; UnknownFamily if neither configuration nor shapes say."""
        configured = self.known.count(self.family, "hidden_size")
        if configured is not None:
            return configured
        tensors = self.layout.tensors
        roles: tuple[Role, ...] = ("output", "down", "shared_down")
        role = next(
            (r for r in roles if r in tensors and find(self.block, tensors[r], self.store)), None
        )
        if role is None:
            raise UnknownFamily(
                "nothing says how wide the residual stream is",
                path=self.known.path,
                hint=self.known.where_to_say,
            )
        rows = self._matrix(role)[0]
        if rows == 0:
            raise misshapen(self._info(role), "at least one row")
        return rows

    def _sizes(self) -> Sizes:
        """Sizes of the heads from shapes; only their number needs the configuration."""
        hidden_size = self.hidden_size()
        inner = self._matrix("output")[1]
        rows, columns = self._matrix("value")
        take = self.layout.tensors["value"].take
        if self.layout.tensors["value"].transposed and columns != hidden_size == rows:
            raise NothingAnalysable(
                f"the maps are stored (out, in), and those of '{self.family.name}' (in, out)",
                path=self.known.path,
                tensor=self._info("value").name,
                hint="transpose them, as nanoGPT does when it loads GPT-2, and say in config.json "
                "which activation they were trained with: nanoGPT's is 'gelu'",
            )
        heads = self._heads_from_width(take, inner, rows)
        heads = heads or self.known.count(self.family, "num_heads")
        if heads is None:
            # Without a head count: where values are not shared between heads it does not matter.
            alone = rows // 3 if take == "qkv:v" else rows
            if alone != inner or take not in ("all", "qkv:v"):
                raise UnknownFamily(
                    "the heads share values and nothing says how many heads there are",
                    path=self.known.path,
                    hint=self.known.where_to_say,
                )
            note = "head count not given; it does not enter the result"
            if note not in self.known.notes:
                self.known.notes.append(note)
            return Sizes(hidden_size, self.num_layers, 1, 1, inner)
        if inner % heads:
            raise misshapen(self._info("output"), f"columns that divide among {heads} heads")
        head_dim = inner // heads
        if take == "latent:v":
            kv_heads = heads
        elif take == "all":
            kv_heads = rows // head_dim
        else:  # q, k and v in one tensor
            kv_heads = (rows // head_dim - heads) // 2
        whole = {"all": kv_heads, "latent:v": None}.get(take, heads + 2 * kv_heads)
        if kv_heads < 1 or heads % kv_heads or (whole is not None and rows != whole * head_dim):
            raise misshapen(
                self._info("value"), f"values for {heads} heads of {head_dim}, shared evenly"
            )
        return Sizes(hidden_size, self.num_layers, heads, kv_heads, head_dim)

    def _heads_from_width(self, take: str, inner: int, rows: int) -> int | None:
        """The number of heads where only their width, or that of keys and values, is given."""
        if take != "all" or self.known.get(self.family, "num_heads") is not None:
            return None
        width = self.known.value("head_dim", "attention.value_length")
        shared = self.known.value("num_key_value_heads", "attention.head_count_kv")
        if width is None and type(shared) is int and shared > 0 and rows % shared == 0:
            width = rows // shared
        if type(width) is not int or width < 1 or inner % width:
            return None
        return inner // width

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
            raise misshapen(info, f"{expected[0]} x {expected[1]} for the role '{role}'")
        if bias is not None:
            experts = self.routing.num_experts if spec.stacked and self.routing is not None else 1
            self._require_size(self.store.info(bias), rows * experts)
        transposed = spec.transposed and not info.oriented
        expert_rows = 0
        if spec.stacked and self.routing is not None:
            expert_rows = columns if transposed else rows
            if math.prod(info.shape[:-1]) != expert_rows * self.routing.num_experts:
                raise misshapen(info, f"{self.routing.num_experts} experts")
        input_scale = None
        if spec.input_scale is not None:
            input_scale = self.block + spec.input_scale
            self._require_size(self.store.info(input_scale), columns)
        return WeightRef(
            weight=info.name,
            bias=bias,
            transposed=transposed,
            ranges=ranges,
            step=step,
            start=start,
            expert=expert if spec.stacked else None,
            expert_rows=expert_rows,
            split_heads=spec.split_heads,
            input_scale=input_scale,
        )

    def _expected(
        self, role: Role, hidden_size: int, width: dict[str, int], rows: int, columns: int
    ) -> tuple[int, int]:
        """The shape a role must have, given those found before it."""
        kind, _, part = role.rpartition("_")
        if role == "ffn_output_gate":
            return hidden_size, hidden_size
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
                raise misshapen(info, "an even number of rows")
            if take in ("even", "odd"):
                return None, 2, 1 if take == "odd" else 0
            return (((0, rows // 2),) if take == "half:1" else ((rows // 2, rows),)), 1, 0
        sizes = self.sizes
        assert sizes is not None
        heads, kv_heads, width = sizes.num_heads, sizes.num_kv_heads, sizes.head_dim
        if take == "latent:c":
            rank = self.known.count(self.family, "latent_width")
            if rank is None or rank > rows:
                raise misshapen(info, f"at least kv_lora_rank ({rank}) rows")
            return ((0, rank),), 1, 0
        if take in ("latent:v", "query:q", "query:gate"):
            # A head's rows are [key or query, value or gate].
            if rows % heads or rows // heads < width:
                raise misshapen(info, f"more than {width} rows for each of {heads} heads")
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
                raise misshapen(info, "rows that divide into four parts of q, v and k")
            return tuple((part * (3 * n + 1), part * (3 * n + 2)) for n in range(4)), 1, 0
        queries = 1 if take == "heads:v" else heads // kv_heads
        groups = heads if take == "heads:v" else kv_heads
        ends = (width * (queries + 2) * (g + 1) for g in range(groups))
        return tuple((end - width, end) for end in ends), 1, 0

    def _require_size(self, info: TensorInfo, size: int) -> None:
        if math.prod(info.shape) != size:
            raise misshapen(info, f"{size} elements")


def misshapen(info: TensorInfo, expected: str) -> TensorError:
    """The error of a tensor that has another shape than its role."""
    shape = " x ".join(str(n) for n in info.shape) or "a scalar"
    return TensorError(
        f"the shape is {shape}, expected {expected}", path=info.path, tensor=info.name
    )
