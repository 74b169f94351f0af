"""What per-tensor int8 does to the output of each linear module, on single tokens.

Initial tokens are rolled out alone at position 0, ordinary ones without attention, through the
exact network; what enters each linear map on the way is rounded as smoothquant's W8A8 does: one
symmetric scale, max |.| / 127, for the weight and one for all activations. An initial token's
largest activation sets the scale of the ordinary ones beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np

from ckptforensics.architectures import LayerPlan, WeightRef
from ckptforensics.arrays import Doubles, Floats
from ckptforensics.compute.operator import Operator
from ckptforensics.compute.products import multiply, multiply_adjoint
from ckptforensics.forward import apply_norm, attention_forward, ffn_forward
from ckptforensics.layers import Block, Ffn, Linear, Matrix, Moe
from ckptforensics.probes import advance
from ckptforensics.quantization.encoders import int8
from ckptforensics.tensors import TensorReader, matrix_shape

# A token is no ordinary one where its norm is this many times the median.
STANDS_OUT = 4.0
# Elements of a weight that are rounded at once.
_AT_ONCE = 1 << 22

TokenPath = Literal["initial", "ordinary"]
PATHS: tuple[TokenPath, TokenPath] = ("initial", "ordinary")


@dataclass(frozen=True)
class ModuleError:
    """What is predicted of one linear module; medians over tokens, None where none reaches it.

    Attributes
    ----------
    tensor, expert : its weight in the file, and the expert on that tensor's first axis
    role : or roles, where several share the tensor
    elements : of its weight
    relative : of `initial`, `ordinary` and `ordinary_alone`: |quantized - exact| / |exact|
    reaches : share of the tokens that reach it (1 but for experts), of each path
    """

    tensor: str
    expert: int | None
    role: str
    elements: int
    relative: tuple[float | None, float | None, float | None]
    reaches: tuple[float, float]


@dataclass(frozen=True)
class LayerErrors:
    """The modules of one layer, and the tokens behind it.

    Attributes
    ----------
    shares : branch to its output's size beside the residual stream behind it, of each path
    after : the residual streams
    """

    modules: tuple[ModuleError, ...]
    shares: Mapping[Literal["attention", "ffn"], tuple[float, float]]
    after: Mapping[TokenPath, Floats]


@dataclass
class _Part:
    """One linear map of a module, and what was seen to enter it, (columns, tokens)."""

    load: Callable[[], Linear]
    ref: WeightRef
    seen: dict[TokenPath, list[Floats]] = field(default_factory=dict)


class _Watched(Operator):
    """A matrix that shows what it is multiplied with."""

    def __init__(self, matrix: Matrix, see: Callable[[Floats], None]) -> None:
        self.matrix, self.see = matrix, see
        self.shape = matrix.shape[0], matrix.shape[1]

    def matmat(self, x: Floats) -> Floats:
        self.see(x)
        return multiply(self.matrix, x)

    def rmatmat(self, y: Floats) -> Floats:
        return multiply_adjoint(self.matrix, y)


class _WatchedExperts(Sequence[Ffn]):
    def __init__(self, experts: Sequence[Ffn], watch: Callable[[int, Ffn], Ffn]) -> None:
        self.experts, self.watch = experts, watch

    def __len__(self) -> int:
        return len(self.experts)

    def __getitem__(self, index: Any) -> Any:
        return self.watch(index, self.experts[index])


def layer_errors(
    block: Block, plan: LayerPlan, store: TensorReader, x: Mapping[TokenPath, Floats]
) -> LayerErrors:
    """Roll both kinds of tokens through a block, and round what enters its linear maps.

    Parameters
    ----------
    plan : of the block's tensors
    x : (tokens, hidden_size) residual streams before the block

    Raises
    ------
    CkptError
        if the block cannot be rolled through, or a weight cannot be decoded.
    """
    watch = _Watch(plan)
    watched = watch.block(block)
    x = {**x, "ordinary": _ordinary(block, x["ordinary"])}
    after: dict[TokenPath, Floats] = {}
    sizes: dict[Literal["attention", "ffn"], list[float]] = {"attention": [], "ffn": []}
    for path in PATHS:
        watch.path = path
        after[path], added = _through(watched, x[path], with_attention=path == "initial")
        length = np.maximum(_lengths(after[path]), np.finfo(np.float64).tiny)
        for branch, rows in added.items():
            sizes[branch].append(float(np.median(_lengths(rows) / length)))
    count = {path: len(x[path]) for path in PATHS}
    modules = tuple(_module_error(key, parts, store, count) for key, parts in watch.modules())
    shares = {name: (found[0], found[1]) for name, found in sizes.items() if found}
    return LayerErrors(modules, shares, after)


def _ordinary(block: Block, x: Floats) -> Floats:
    """The tokens that the block does not blow up, as it does those that trigger it."""
    lengths = _lengths(advance(block, x, with_attention=False))
    return x[lengths <= STANDS_OUT * np.median(lengths)]


def _lengths(rows: Floats) -> Doubles:
    lengths: Doubles = np.linalg.norm(rows.astype(np.float64), axis=1)
    return lengths


def _through(
    block: Block, x: Floats, *, with_attention: bool
) -> tuple[Floats, dict[Literal["attention", "ffn"], Floats]]:
    """As `forward.block_forward`, with what each branch adds.

    Without attention its branch is computed all the same: an ordinary token's own value stands for
    the mixture that it would get.
    """
    added: dict[Literal["attention", "ffn"], Floats] = {}
    before = x
    if block.attention is not None:
        added["attention"] = attention_forward(block.attention, x)
        x = x + added["attention"] if with_attention else x
        if block.residual == "sequential":
            x = before = apply_norm(x, block.attention.after_norm)
    added["ffn"] = ffn_forward(block.ffn, before)
    return apply_norm(x + added["ffn"], block.ffn.after_norm), added


class _Watch:
    """The linear maps of a block by the modules that hold them, and what enters each."""

    def __init__(self, plan: LayerPlan) -> None:
        self.plan = plan
        self.path: TokenPath = "initial"
        self._modules: dict[tuple[str, int | None], dict[str, _Part]] = {}

    def modules(self) -> Iterator[tuple[tuple[str, int | None], dict[str, _Part]]]:
        yield from self._modules.items()

    def block(self, block: Block) -> Block:
        refs = self.plan.refs
        attention, ffn = block.attention, block.ffn
        if attention is not None:
            own = {"latent": "latent", "value": "value", "attention_gate": "gate"}
            attention = self._replaced(attention, refs, {**own, "output": "output"})
        if isinstance(ffn, Ffn):
            roles = ("gate", "up", "down")
            names = {**{r: r for r in roles}, "ffn_output_gate": "output_gate"}
            return replace(block, attention=attention, ffn=self._replaced(ffn, refs, names))
        shared = ffn.shared
        if shared is not None:
            names = {f"shared_{role}": role for role in ("gate", "up", "down")}
            shared = self._replaced(shared, refs, names)
        experts = _WatchedExperts(ffn.experts, partial(self._expert, ffn))
        return replace(block, attention=attention, ffn=replace(ffn, shared=shared, experts=experts))

    def _expert(self, moe: Moe, index: int, expert: Ffn) -> Ffn:
        refs = self.plan.experts[index]
        names = {f"expert_{role}": role for role in ("gate", "up", "down")}
        return self._replaced(expert, refs, names, lambda: moe.experts[index])

    def _replaced(
        self,
        branch: Any,
        refs: Mapping[Any, WeightRef],
        names: Mapping[str, str],
        again: Callable[[], Any] | None = None,
    ) -> Any:
        """The branch with its linear maps watched; `again` reads it anew when it is rounded."""
        changed = {}
        for role, name in names.items():
            linear = getattr(branch, name)
            if linear is None:
                continue
            ref = refs[role]
            parts = self._modules.setdefault((ref.weight, ref.expert), {})
            part = parts.setdefault(role, _Part(partial(_loaded, branch, again, name), ref))
            matrix = _Watched(linear.matrix, partial(self._see, part))
            changed[name] = Linear(cast(Matrix, matrix), linear.bias)
        return replace(branch, **changed)

    def _see(self, part: _Part, x: Floats) -> None:
        part.seen.setdefault(self.path, []).append(x)


def _loaded(branch: Any, again: Callable[[], Any] | None, name: str) -> Linear:
    found: Linear = getattr(branch if again is None else again(), name)
    return found


def _module_error(
    key: tuple[str, int | None],
    parts: Mapping[str, _Part],
    store: TensorReader,
    count: Mapping[TokenPath, int],
) -> ModuleError:
    tensor, expert = key
    linears = {role: part.load() for role, part in parts.items()}
    some = next(iter(parts.values()))
    seen = {path: _joined(some.seen.get(path, [])) for path in PATHS}
    reaches = [0.0 if seen[path] is None else seen[path].shape[1] / count[path] for path in PATHS]  # type: ignore[union-attr]
    fused = expert is None and (some.ref.ranges is not None or some.ref.step != 1)
    columns, rows = matrix_shape(store.info(tensor))
    elements = sum(linear.matrix.size for linear in linears.values())
    if fused:
        elements = columns * rows
        largest = _largest_stored(store, tensor)
    else:
        largest = max(_largest(linear.matrix) for linear in linears.values())
    relative = _relative([*linears.values()], largest, seen["initial"], seen["ordinary"])
    role = ", ".join(role.removeprefix("expert_") for role in parts)
    return ModuleError(tensor, expert, role, elements, relative, (reaches[0], reaches[1]))


def _joined(parts: list[Floats]) -> Floats | None:
    return np.concatenate(parts, axis=1) if parts else None


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _AT_ONCE // columns)
    yield from (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def _largest(matrix: Matrix) -> float:
    return max(float(np.abs(matrix[rows]).max()) for rows in _blocks(*matrix.shape))


def _largest_stored(store: TensorReader, name: str) -> float:
    columns, rows = matrix_shape(store.info(name))
    parts = _blocks(rows, columns)
    return max(float(np.abs(store.read_rows(name, p.start, p.stop)).max()) for p in parts)


def _relative(
    linears: Sequence[Linear], largest: float, initial: Floats | None, ordinary: Floats | None
) -> tuple[float | None, float | None, float | None]:
    """Medians of the relative errors; see `ModuleError`."""
    own = 0.0 if ordinary is None else float(np.abs(ordinary).max())
    exact, inputs = [], []
    beside = own
    if initial is not None:
        peaks = np.abs(initial).max(axis=0)
        beside = max(own, float(np.median(peaks)))
        exact.append(initial)
        inputs.append(int8(initial, np.maximum(peaks, np.float32(own))))
    if ordinary is not None:
        exact += [ordinary, ordinary]
        inputs += [int8(ordinary, beside), int8(ordinary, own)]
    if not exact:
        return None, None, None
    x, q = np.concatenate(exact, axis=1), np.concatenate(inputs, axis=1)
    wrong, right = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for linear in linears:
        for rows in _blocks(*linear.matrix.shape):
            w = linear.matrix[rows]
            y = multiply(w, x)
            error = multiply(int8(w, largest), q) - y
            if linear.bias is not None:
                y = y + linear.bias[rows, None]
            wrong += np.einsum("ij,ij->j", error, error, dtype=np.float64)
            right += np.einsum("ij,ij->j", y, y, dtype=np.float64)
    ratio = np.sqrt(wrong / np.maximum(right, np.finfo(np.float64).tiny))
    ends = np.cumsum([0, *(part.shape[1] for part in exact)])
    medians = [float(np.median(ratio[a:b])) for a, b in pairwise(ends)]
    first = medians.pop(0) if initial is not None else None
    return (first, *medians) if medians else (first, None, None)  # type: ignore[return-value]
