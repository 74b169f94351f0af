"""A quantized copy against its source: the error and the lattice of every matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from ckptforensics.architectures.schema import UNUSED_REASONS
from ckptforensics.arrays import Floats
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.compute.threads import all_cores
from ckptforensics.errors import UsageError
from ckptforensics.findings.model import model_record, opened
from ckptforensics.layers.reader import BlockReader
from ckptforensics.lineage.changes.lattices import find_lattice, is_rounding
from ckptforensics.progress import Progress, running
from ckptforensics.results import Skipped
from ckptforensics.results.quantization_diff import (
    QuantizationDiffDocument,
    RoundedGroup,
    RoundedLayer,
    RoundedTensor,
)
from ckptforensics.version import __version__

# Rows in which a lattice is looked for.
_SAMPLED_ROWS = 32
_ROWS_AT_ONCE = 1024
# What is compared: matrices that quantizers round.
_MATRICES = frozenset(
    {
        *("query", "key", "value", "output", "latent", "attention_gate", "gate", "up", "down"),
        *("expert_gate", "expert_up", "expert_down", "shared_gate", "shared_up", "shared_down"),
    }
)


@dataclass(frozen=True)
class _Compared:
    """A row of the result, and the squares that its error is made of."""

    row: RoundedTensor
    wrong: float
    size: float


@all_cores()
def diff_quantized(
    source: Checkpoint | str | Path,
    quantized: Checkpoint | str | Path,
    *,
    progress: Progress | None = None,
) -> QuantizationDiffDocument:
    """Relative error and lattice of every matrix of a quantized copy against its source.

    Matrices correspond by layer and role, so that a GGUF file is compared with safetensors; both
    are dequantized. Queries and keys are compared where both files have the same name for them:
    GGUF keeps their rows in another order.

    Raises
    ------
    UsageError
        if the two have another number of layers, or no matrix in common.
    CkptError
        if one cannot be opened or decoded; see `open_checkpoint`.
    """
    a, b = opened(source), opened(quantized)
    counts = [len(model.architecture.layers) for model in (a, b)]
    if counts[0] != counts[1]:
        raise UsageError(
            f"the source has {counts[0]} layers and the copy {counts[1]}",
            path=b.source.path,
            hint="name the model that was quantized first, then its copy",
        )
    compared: list[_Compared] = []
    skipped: list[Skipped] = []
    with running(progress, "layers", counts[0]) as step:
        for layer in range(1, counts[0] + 1):
            compared += _layer(a, b, layer, skipped)
            step(b.architecture.layers[layer - 1].prefix)
    if not compared:
        raise UsageError(
            "the two models have no matrix of one shape in the same place",
            path=b.source.path,
            hint="name the model that was quantized first, then its copy",
        )
    return QuantizationDiffDocument(
        tool_version=__version__,
        source=model_record(a),
        quantized=model_record(b),
        error=_together(compared),
        groups=_groups([one.row for one in compared]),
        layers=_layers(compared),
        tensors=tuple(one.row for one in compared),
        skipped=tuple(skipped),
    )


def _layer(a: Checkpoint, b: Checkpoint, layer: int, skipped: list[Skipped]) -> Iterator[_Compared]:
    for role, names, (one, other) in _pairs(a, b, layer):
        if one.shape != other.shape:
            shapes = " and ".join("x".join(map(str, m.shape)) for m in (one, other))
            what = f"{role} of layer {layer}"
            skipped.append(Skipped(what=what, reason=f"the matrices are {shapes}"))
            continue
        dtypes = a.store.info(names[0]).dtype, b.store.info(names[1]).dtype
        yield _compared(layer, role, names[1], dtypes, (one, other))


def _pairs(
    a: Checkpoint, b: Checkpoint, layer: int
) -> Iterator[tuple[str, tuple[str, str], tuple[Floats, Floats]]]:
    """Role, names and (out, in) matrices of what corresponds in a layer."""
    plan_a, plan_b = (model.architecture.layers[layer - 1] for model in (a, b))
    # They read nothing yet: each matrix is read when it is compared.
    read_a, read_b = (
        BlockReader(model, replace(plan, refs={}, experts=()))
        for model, plan in ((a, plan_a), (b, plan_b))
    )
    for refs_a, refs_b in zip(
        (plan_a.refs, *plan_a.experts), (plan_b.refs, *plan_b.experts), strict=False
    ):
        for role, ref in refs_a.items():
            other = refs_b.get(role)
            if role in _MATRICES and other is not None:
                matrices = read_a.read_linear(ref).weight, read_b.read_linear(other).weight
                yield role, (ref.weight, other.weight), matrices
    for name, reason in a.architecture.unused.items():
        of_layer = name.startswith(plan_a.prefix) and reason == UNUSED_REASONS["scores"]
        if of_layer and name in b.store and _is_matrix(a, name):
            own = name.removeprefix(plan_a.prefix).removesuffix(".weight")
            yield own, (name, name), (a.store.read(name), b.store.read(name))


def _is_matrix(model: Checkpoint, name: str) -> bool:
    shape = model.store.info(name).shape
    return len(shape) == 2 and min(shape) > 1


def _compared(
    layer: int,
    role: str,
    tensor: str,
    dtypes: tuple[str, str],
    matrices: tuple[Floats, Floats],
) -> _Compared:
    source, copy = matrices
    wrong, size = 0.0, 0.0
    for begin in range(0, len(source), _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        apart = copy[rows].astype(np.float64) - source[rows]
        wrong += float(np.einsum("ij,ij->", apart, apart))
        size += float(np.einsum("ij,ij->", source[rows], source[rows], dtype=np.float64))
    some = np.unique(np.linspace(0, len(copy) - 1, _SAMPLED_ROWS).astype(np.int64))
    sample, beside = np.ascontiguousarray(copy[some]), source[some]
    lattice = find_lattice(sample, float(np.abs(copy).max()))
    steps = None if lattice is None else lattice.steps[lattice.steps > 0]
    row = RoundedTensor(
        layer=layer,
        role=role,
        tensor=tensor,
        dtypes=dtypes,
        error=_ratio(wrong, size),
        lattice=None if lattice is None else lattice.name,
        step=float(np.median(steps)) if steps is not None and steps.size else None,
        within=None if lattice is None else is_rounding(lattice, sample, beside)[0],
    )
    return _Compared(row, wrong, size)


def _ratio(wrong: float, size: float) -> float:
    """|copy - source| / |source|; a source of zeros counts as having the size of its copy."""
    if wrong == 0:
        return 0.0
    return math.sqrt(wrong / size) if size > 0 else 1.0


def _together(compared: Sequence[_Compared]) -> float:
    return _ratio(sum(one.wrong for one in compared), sum(one.size for one in compared))


def _groups(rows: Sequence[RoundedTensor]) -> tuple[RoundedGroup, ...]:
    errors: dict[tuple[str, str, str | None], list[float]] = {}
    for row in rows:
        errors.setdefault((row.role, row.dtypes[1], row.lattice), []).append(row.error)
    return tuple(
        RoundedGroup(
            role=role,
            dtype=dtype,
            lattice=lattice,
            count=len(found),
            smallest=min(found),
            median=median(found),
            largest=max(found),
        )
        for (role, dtype, lattice), found in errors.items()
    )


def _layers(compared: Sequence[_Compared]) -> tuple[RoundedLayer, ...]:
    by_layer: dict[int, list[_Compared]] = {}
    for one in compared:
        by_layer.setdefault(one.row.layer, []).append(one)
    found = []
    for layer, members in by_layer.items():
        worst = max((one.row for one in members), key=lambda row: row.error)
        found.append(
            RoundedLayer(
                layer=layer, error=_together(members), worst=worst.role, worst_error=worst.error
            )
        )
    return tuple(found)
