"""One pass over every layer of two models: what their FFNs compute behind a gate, and their heads.

Neither a layer map nor a matching of neurons enters, since who hides a copy may choose both: what
is sampled of A is looked for in every layer of B (docs/lineage.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ckptforensics.arrays import Doubles, Floats, Ints
from ckptforensics.compute.products import multiply
from ckptforensics.errors import NotApplicable
from ckptforensics.forward import fold_norm
from ckptforensics.layers import Attention
from ckptforensics.lineage.correspondence.neurons import has_gate, token_states
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.numeric import unit_rows
from ckptforensics.lineage.pair import Pair, spread
from ckptforensics.lineage.randomness import Stream

# Gates whose responses have a cosine within this of the largest are one gate.
ONE_GATE = 0.02
# A neuron that writes less than this share of what the median one writes is no part of a function.
_WRITES = 1e-3
# More neurons than this behind one gate: the gates of the layer are not told apart.
_MOST_BEHIND = 256
# Singular values below this share of a head's largest are rounding of float32 products.
_SMALLEST = 3e-3


class Behind(NamedTuple):
    """What all neurons behind one gate compute together: sum of up responses times writes.

    Attributes
    ----------
    up : (neurons, tokens) responses of their up rows
    write : (neurons, tokens) what they write, as the tokens read it
    """

    up: Floats
    write: Floats

    def size(self) -> float:
        """Frobenius norm of the sum."""
        return float(np.sqrt(max(0.0, self.inner(self))))

    def inner(self, other: Behind) -> float:
        """Inner product of two sums, neither of which is formed."""
        ups = self.up.astype(np.float64) @ other.up.T.astype(np.float64)
        return float((ups * (self.write.astype(np.float64) @ other.write.T)).sum())


@dataclass(frozen=True)
class _Responses:
    """How the neurons of one FFN answer tokens.

    Attributes
    ----------
    gate : (neurons, tokens) unit responses of the rows that open them
    up, write : as in `Behind`, of every neuron; `up` is that of the input rows without a gate
    """

    gate: Floats
    up: Floats
    write: Floats

    def behind(self, members: Ints) -> Behind:
        """What these neurons compute together."""
        return Behind(self.up[members], self.write[members])

    def exchanged(self) -> _Responses:
        """With gate and up in each other's place."""
        return _Responses(unit_rows(self.up), self.gate, self.write)


@dataclass(frozen=True)
class _Sampled:
    """Neurons of one layer of A: the responses of their gates, and what is behind each."""

    layer: int
    gates: Floats
    behind: tuple[Behind, ...]


def function_cosines(pair: Pair) -> dict[tuple[int, int], float]:
    """For layers of A and of B the median |cosine| of what sampled gates of A open in both.

    Each gate of A is looked for among B's gates, and among its up rows, which a name can exchange;
    the larger median counts.

    Raises
    ------
    NotApplicable
        if no tokens are known to be shared, only one model has gates, or no neuron writes anything.
    """
    states = token_states(pair, pair.effort.function_tokens)[0]
    chosen = [spread(model.layers, pair.effort.function_layers) for model in pair.models]
    gated = {has_gate(model, model.layers[0]) for model in pair.models}
    if len(gated) > 1:
        raise NotApplicable("the neurons of only one of the models have gates")
    maybe = [_sample(pair, layer, states[0]) for layer in chosen[0]]
    sampled = [found for found in maybe if found is not None]
    if not sampled:
        raise NotApplicable(f"no neuron of {pair.a.name} writes anything, or none can be told")
    cosines: dict[tuple[int, int], float] = {}
    for layer in chosen[1]:
        for responses in _responses(pair.b, layer, states[1]):
            forms = [responses, responses.exchanged()] if gated == {True} else [responses]
            for one in sampled:
                found = max(_median_cosine(one, form) for form in forms)
                key = (one.layer, layer)
                cosines[key] = max(found, cosines.get(key, 0.0))
    return cosines


def _sample(pair: Pair, layer: int, states: Floats) -> _Sampled | None:
    generator = pair.generator(Stream.GATE_FUNCTIONS, layer)
    gates, behind = [], []
    for responses in _responses(pair.a, layer, states):
        writes = np.linalg.norm(responses.write, axis=1) * np.linalg.norm(responses.up, axis=1)
        opens = np.linalg.norm(responses.gate, axis=1) > 0
        usual = float(np.median(writes[writes > 0])) if (writes > 0).any() else 0.0
        able = np.flatnonzero((writes > _WRITES * usual) & opens) if usual else np.empty(0, int)
        for i in generator.permutation(able)[: pair.effort.function_neurons]:
            members = np.flatnonzero(responses.gate @ responses.gate[i] >= 1 - ONE_GATE)
            # One gate that most neurons share is not told from any other.
            if members.size <= min(_MOST_BEHIND, len(responses.gate) // 4):
                gates.append(responses.gate[i])
                behind.append(responses.behind(members))
    return _Sampled(layer, np.stack(gates), tuple(behind)) if gates else None


def _responses(model: Model, layer: int, states: Floats) -> Iterator[_Responses]:
    """Of a dense FFN, or of each expert."""
    columns = np.ascontiguousarray(states.T)
    for units in model.ffns(layer):
        up = multiply(np.ascontiguousarray(units.up), columns)
        gate = up if units.gate is None else multiply(np.ascontiguousarray(units.gate), columns)
        write = multiply(np.ascontiguousarray(units.down.T), columns)
        yield _Responses(unit_rows(gate), up, write)


def _median_cosine(sampled: _Sampled, other: _Responses) -> float:
    cosines = multiply(sampled.gates, np.ascontiguousarray(other.gate.T))
    behind = cosines >= cosines.max(axis=1, keepdims=True) - ONE_GATE
    alone = (behind.sum(axis=1) == 1) & np.array([len(mine.up) == 1 for mine in sampled.behind])
    found = _single_cosines(sampled, other, np.flatnonzero(alone), cosines)
    for i in np.flatnonzero(~alone).tolist():
        mine, members = sampled.behind[i], np.flatnonzero(behind[i])
        if members.size > _MOST_BEHIND:
            continue
        theirs = other.behind(members)
        size = mine.size() * theirs.size()
        found.append(abs(mine.inner(theirs)) / size if size > 0 else 0.0)
    return float(np.median(found)) if found else 0.0


def _single_cosines(
    sampled: _Sampled, other: _Responses, places: Ints, cosines: Floats
) -> list[float]:
    """The same of gates with one neuron behind them in both models, all at once."""
    if not places.size:
        return []
    partners = cosines[places].argmax(axis=1)
    found = np.ones(len(places))
    for name in ("up", "write"):
        mine = np.concatenate([getattr(sampled.behind[i], name) for i in places])
        theirs = getattr(other, name)[partners]
        inner = np.einsum("ij,ij->i", mine, theirs, dtype=np.float64)
        sizes = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
        found *= np.divide(np.abs(inner), sizes, out=np.zeros_like(found), where=sizes > 0)
    return found.tolist()


def head_spectra(model: Model) -> dict[int, Doubles]:
    """Log singular values of each head's W_O W_V, less their mean, by layer: (heads, values).

    Which basis the residual stream, the values and the heads are in, their order, and factors do
    not enter. Layers without attention that is analysed are left out, and heads that write nothing.
    """
    found = {}
    for layer in model.layers:
        attention = model.block(layer).attention
        if attention is not None:
            found[layer] = _spectra(attention)
    return found


def _spectra(attention: Attention) -> Doubles:
    value = fold_norm(attention.value.weight, attention.norm if attention.latent is None else None)
    if attention.latent is not None:
        inner = fold_norm(attention.value.weight, attention.latent_norm)
        value = inner @ fold_norm(attention.latent.weight, attention.norm)
    width = attention.head_dim
    output = np.ascontiguousarray(attention.output.weight.T)
    heads = output.shape[0] // width
    values = np.stack(np.split(value, value.shape[0] // width))
    grams = np.matmul(values, values.transpose(0, 2, 1)).astype(np.float64)
    rows = []
    for head, block in enumerate(np.split(output, heads)):
        # sigma(O V) are the roots of the eigenvalues of (O'O)(V V').
        size, basis = np.linalg.eigh((block @ block.T).astype(np.float64))
        root = np.sqrt(np.maximum(size, 0))[:, None] * basis.T
        squares = np.linalg.eigvalsh(root @ grams[head // attention.repeats] @ root.T)[::-1]
        sizes = np.sqrt(np.maximum(squares, 0))
        if sizes[0] > 0:
            logs = np.log(np.maximum(sizes, _SMALLEST * sizes[0]))
            rows.append(logs - logs.mean())
    return np.array(rows).reshape(len(rows), width)
