"""What all neurons behind one gate compute together, and whether another model computes it too.

Copies of a neuron, a neuron split in several and decoys that write nothing leave this sum as it is,
so no one-to-one matching enters. Responses to shared tokens are compared, which know no basis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ckptforensics.arrays import Doubles, Floats, Ints
from ckptforensics.compute.products import multiply, multiply_adjoint
from ckptforensics.forward import fold_into
from ckptforensics.layers import Block, Ffn, Matrix, Norm
from ckptforensics.lineage.numeric import unit_rows

# Gates whose responses have a cosine within this of the largest are one gate.
ONE_GATE = 0.02
# A gate whose nearest answers tokens less alike than this is none of the model's.
_LEAST_ALIKE = 0.3
# A neuron that writes less than this share of what the median one writes is no part of a function;
# tokens by which that is told.
_WRITES, _FEW_TOKENS = 1e-3, 64
# More neurons than this behind one gate: the gates of the layer are not told apart.
_MOST_BEHIND = 256
# Share of the neurons from which on what all of them write is computed: columns are slow to pick.
_MOST_PICKED = 0.25


class Behind(NamedTuple):
    """Sums over neurons of up responses times writes, of several gates with as many neurons.

    Attributes
    ----------
    up : (gates, neurons, tokens) responses of their up rows
    write : (gates, neurons, tokens) what they write, as the tokens read it
    """

    up: Floats
    write: Floats

    def inner(self, other: Behind) -> Doubles:
        """(gates,) inner products of the sums, none of which is formed.

        What neurons write may cancel, so sums of several are taken in float64.
        """
        mine, theirs = self, other
        if max(self.up.shape[1], other.up.shape[1]) > 1:
            mine, theirs = self._precise(), other._precise()
        ups = mine.up @ theirs.up.transpose(0, 2, 1)
        writes = mine.write @ theirs.write.transpose(0, 2, 1)
        found: Doubles = np.einsum("gij,gij->g", ups, writes, dtype=np.float64)
        return found

    def sizes(self) -> Doubles:
        """(gates,) Frobenius norms of the sums."""
        return np.sqrt(np.maximum(self.inner(self), 0))

    def _precise(self) -> Behind:
        return Behind(self.up.astype(np.float64), self.write.astype(np.float64))


@dataclass(frozen=True)
class Gates:
    """Sampled gates of a model, of all its layers that have any.

    Attributes
    ----------
    layers : (gates,) numbers of their layers, in order
    opens : (gates, tokens) unit responses
    counts : (gates,) neurons behind each
    up, write : (neurons of all gates, tokens) as in `Behind`, in the gates' order
    """

    layers: Ints
    opens: Floats
    counts: Ints
    up: Floats
    write: Floats

    @classmethod
    def joined(cls, parts: Sequence[Gates]) -> Gates:
        """Those of several layers."""
        names = ("layers", "opens", "counts", "up", "write")
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))

    def by_count(self) -> Iterator[tuple[Ints, Behind]]:
        """Places of gates with as many neurons behind them, and what is behind these."""
        starts = np.cumsum(self.counts) - self.counts
        for count in np.unique(self.counts):
            gates = np.flatnonzero(self.counts == count)
            rows = starts[gates, None] + np.arange(count)
            yield gates, Behind(self.up[rows], self.write[rows])


def sample_gates(
    block: Block, states: Floats, most: int, generator: np.random.Generator
) -> Gates | None:
    """At most so many gates of a layer (of each expert), of neurons that write something.

    Parameters
    ----------
    states : (tokens, hidden_size) what a block's norm makes of tokens, without its gain

    Returns
    -------
    None where there are none, or most neurons share one gate
    """
    parts = []
    for ffn, norm in _ffns(block):
        seen, read = fold_into(states, norm), fold_into(states, None)
        gate = unit_rows(multiply(_opening(ffn), seen))
        writes = np.linalg.norm(
            multiply(ffn.up.matrix, seen[:, :_FEW_TOKENS].copy()), axis=1
        ) * np.linalg.norm(multiply_adjoint(ffn.down.matrix, read[:, :_FEW_TOKENS].copy()), axis=1)
        usual = float(np.median(writes[writes > 0])) if (writes > 0).any() else 0.0
        able = np.flatnonzero((writes > _WRITES * usual) & gate.any(axis=1) & (usual > 0))
        chosen = generator.permutation(able)[:most]
        if not chosen.size:
            continue
        one = multiply(gate, np.ascontiguousarray(gate[chosen].T)) >= 1 - ONE_GATE
        # One gate that most neurons share is not told from any other.
        told = one.sum(axis=0) <= min(_MOST_BEHIND, len(gate) // 4)
        chosen, one = chosen[told], one[:, told]
        if chosen.size:
            members = np.nonzero(one.T)[1]
            at, back = np.unique(members, return_inverse=True)
            up, write = ffn.up.matrix[at] @ seen, ffn.down.matrix[:, at].T @ read
            layers = np.full(chosen.size, block.layer)
            counts = one.sum(axis=0)
            parts.append(Gates(layers, gate[chosen], counts, up[back], write[back]))
    return Gates.joined(parts) if parts else None


def function_cosines(
    gates: Gates, sizes: Doubles, block: Block, states: Floats
) -> dict[int, float]:
    """For each layer of the gates the median |cosine| of what they open, here and in a block.

    Each gate is looked for among the block's gates, and among its up rows, which a name can
    exchange; the larger median counts. Of experts, the one that has the largest.

    Parameters
    ----------
    sizes : (gates,) of what is behind each, see `sizes_of`
    states : as of `sample_gates`, of the block's model
    """
    found: dict[int, float] = {}
    for ffn, norm in _ffns(block):
        seen, read = fold_into(states, norm), fold_into(states, None)
        gate = multiply(_opening(ffn), seen)
        up = gate if ffn.gate is None else multiply(ffn.up.matrix, seen)
        written = _Written(ffn.down.matrix, read)
        forms = [(gate, up)] if ffn.gate is None else [(gate, up), (up, gate)]
        for opens, answers in forms:
            cosines = _cosines(gates, sizes, unit_rows(opens), answers, written)
            for layer, value in _medians(gates.layers, cosines):
                found[layer] = max(value, found.get(layer, 0.0))
    return found


def sizes_of(gates: Gates) -> Doubles:
    """(gates,) the norm of what is behind each."""
    sizes = np.zeros(len(gates.counts))
    for places, behind in gates.by_count():
        sizes[places] = behind.sizes()
    return sizes


def _ffns(block: Block) -> list[tuple[Ffn, Norm | None]]:
    """The dense FFN, or each expert, with the norm before it."""
    if isinstance(block.ffn, Ffn):
        return [(block.ffn, block.ffn.norm)]
    return [(expert, block.ffn.norm) for expert in block.ffn.experts]


def _opening(ffn: Ffn) -> Matrix:
    return ffn.up.matrix if ffn.gate is None else ffn.gate.matrix


class _Written:
    """What neurons write, as the tokens read it; of many of them all of it is computed, once.

    Parameters
    ----------
    down : (hidden_size, neurons)
    read : (hidden_size, tokens)
    """

    def __init__(self, down: Matrix, read: Floats) -> None:
        self._down, self._read = down, read
        self._whole: Floats | None = None

    def by(self, neurons: Ints) -> tuple[Floats, Ints]:
        """(some, tokens), and the row of it for each of all neurons; of the others any row."""
        count = self._down.shape[1]
        if self._whole is None and neurons.size > _MOST_PICKED * count:
            self._whole = multiply_adjoint(self._down, self._read)
        if self._whole is not None:
            return self._whole, np.arange(count)
        place = np.zeros(count, np.int64)
        place[neurons] = np.arange(neurons.size)
        columns: Floats = self._down[:, neurons]
        return multiply(np.ascontiguousarray(columns.T), self._read), place


def _cosines(gates: Gates, sizes: Doubles, opens: Floats, up: Floats, written: _Written) -> Doubles:
    """(gates,) |cosines| with what is behind the most alike gates of an FFN; NaN of too many."""
    alike = multiply(opens, np.ascontiguousarray(gates.opens.T))
    nearest = alike.max(axis=0)
    known = np.flatnonzero(nearest >= _LEAST_ALIKE)
    neurons, owners = np.nonzero(alike[:, known] >= nearest[known] - ONE_GATE)
    owners = known[owners]
    counts = np.bincount(owners, minlength=len(nearest))
    partners = neurons[np.argsort(owners, kind="stable")]
    starts = np.cumsum(counts) - counts
    write, place = written.by(np.unique(partners))
    found = np.zeros(len(nearest))
    found[known] = np.nan
    for some, mine in gates.by_count():
        for count in np.unique(counts[some]):
            if not 0 < count <= _MOST_BEHIND:
                continue
            here = np.flatnonzero(counts[some] == count)
            members = partners[starts[some[here], None] + np.arange(count)]
            theirs = Behind(up[members], write[place[members]])
            inner = np.abs(Behind(mine.up[here], mine.write[here]).inner(theirs))
            size = sizes[some[here]] * theirs.sizes()
            found[some[here]] = np.divide(inner, size, out=np.zeros_like(inner), where=size > 0)
    return found


def _medians(layers: Ints, values: Doubles) -> Iterator[tuple[int, float]]:
    ends = np.flatnonzero(np.diff(layers)) + 1
    for layer, some in zip(
        layers[np.concatenate([[0], ends])], np.split(values, ends), strict=True
    ):
        there = some[~np.isnan(some)]
        yield int(layer), float(np.median(there)) if there.size else 0.0
