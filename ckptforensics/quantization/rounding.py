"""A checkpoint as a quantizer would leave it: its linear weights are rounded when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ckptforensics.architectures import Architecture
from ckptforensics.architectures.schema import UNUSED_REASONS
from ckptforensics.arrays import Floats
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import UsageError
from ckptforensics.quantities import counted
from ckptforensics.quantization.encoders import SCHEMES, Scheme
from ckptforensics.tensors import TensorInfo, TensorReader, matrix_shape

if TYPE_CHECKING:
    from ckptforensics.arrays import Bytes
    from ckptforensics.compute.bf16 import Bf16Matrix

# Elements that are rounded at once, with their temporaries.
_AT_ONCE = 1 << 20
# Roles of matrices that quantizers leave alone, beside all that is a vector.
_ALONE = ("router", "sinks", "norm", "scale", "correction")


def rounded(checkpoint: Checkpoint, scheme: str) -> Checkpoint:
    """The checkpoint with its linear weights rounded when they are read; its notes say so.

    Norms, routers and biases stay as they are, and so do embeddings and the head unless the
    scheme's tools round them.

    Parameters
    ----------
    scheme : one of `encoders.SCHEMES`

    Raises
    ------
    UsageError
        if there is no such scheme, or nothing that it could round.
    """
    if scheme not in SCHEMES:
        raise UsageError(f"no way to round is called '{scheme}'", hint=f"use {', '.join(SCHEMES)}")
    store = RoundedReader(checkpoint.store, checkpoint.architecture, scheme)
    if not store.names:
        raise UsageError(
            f"no weight can be rounded as {scheme}",
            path=checkpoint.source.path,
            hint="its rows must be whole groups: choose another way to round",
        )
    note = (
        f"{counted(len(store.names), 'weight')} rounded as {scheme} when read "
        f"({SCHEMES[scheme].words}): this is not what the files hold"
    )
    source = replace(checkpoint.source, notes=(*checkpoint.source.notes, note))
    return Checkpoint(source, store, checkpoint.architecture)


class RoundedReader(TensorReader):
    """A reader whose linear weights are those of another one after a round trip through codes.

    Attributes
    ----------
    base : the reader of the weights as they are
    scheme : name of the way to round
    names : tensor to whether it is stored as (in, out)
    """

    def __init__(self, base: TensorReader, architecture: Architecture, scheme: str) -> None:
        self.base, self.scheme = base, scheme
        self.containers, self.tensors, self.metadata = base.containers, base.tensors, base.metadata
        self.aside, self.watch = base.aside, base.watch
        self.names: Mapping[str, bool] = _rounded_names(base, architecture, SCHEMES[scheme])
        self._largest: dict[tuple[str, int], Floats] = {}

    def recipe(self) -> str:
        """See `TensorReader.recipe`."""
        return f"{self.base.recipe()}{self.scheme} {_code_sha256()} {sorted(self.names.items())}"

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        """See `TensorReader.read_rows`."""
        out = self.base.read_rows(name, start, stop)
        if name not in self.names or out.size == 0:
            return out
        scheme, height = SCHEMES[self.scheme], _height(self.info(name))
        across = self.names[name] and isinstance(scheme.span, int)
        # Groups that run across the rows are rounded whole, whatever rows are asked for.
        every = scheme.span if across and isinstance(scheme.span, int) else 1
        for matrix, a, b in _matrices(height, start, stop):
            first = matrix * height
            largest = self._largest_of(name, matrix)
            for begin, end in _chunks(a, b, every, out.shape[1]):
                place = slice(first + begin - start, first + end - start)
                if largest is not None:
                    out[place] = scheme.encode(out[place], largest)
                elif across:
                    low, high = begin // every * every, min(-(-end // every) * every, height)
                    whole = self.base.read_rows(name, first + low, first + high)
                    out[place] = scheme.rows(whole.T).T[begin - low : end - low]
                else:
                    out[place] = scheme.rows(out[place])
        return out

    def kept_rows(self, name: str, start: int, stop: int) -> Bf16Matrix | None:
        """See `TensorReader.kept_rows`."""
        return None if name in self.names else self.base.kept_rows(name, start, stop)

    def prefetch(self, names: Iterable[str], *, keep: bool = False) -> None:
        """See `TensorReader.prefetch`."""
        self.base.prefetch(names)

    def prefetch_rows(self, name: str, rows: Iterable[tuple[int, int]]) -> None:
        """See `TensorReader.prefetch_rows`."""
        self.base.prefetch_rows(name, rows)

    def parts(self, name: str) -> tuple[TensorInfo, ...]:
        """See `TensorReader.parts`."""
        return self.base.parts(name)

    def stored_bytes(self, name: str) -> Bytes:
        """See `TensorReader.stored_bytes`."""
        return self.base.stored_bytes(name)

    def release(self, name: str) -> None:
        """See `TensorReader.release`."""
        self.base.release(name)

    def _largest_of(self, name: str, matrix: int) -> Floats | None:
        """Largest |entry| of a whole matrix, or of each of its columns where these are outputs.

        None where rows tell it themselves.
        """
        span, transposed = SCHEMES[self.scheme].span, self.names[name]
        if isinstance(span, int) or (span == "row" and not transposed):
            return None
        key = name, matrix
        if key not in self._largest:
            columns, _ = matrix_shape(self.info(name))
            height = _height(self.info(name))
            found = np.zeros((1, columns), np.float32)
            for begin, end in _chunks(0, height, 1, columns):
                rows = self.base.read_rows(name, matrix * height + begin, matrix * height + end)
                np.maximum(found, np.abs(rows).max(axis=0), out=found)
            self._largest[key] = found if span == "row" else found.max(keepdims=True)
        return self._largest[key]


def _height(info: TensorInfo) -> int:
    """Rows of each matrix of the tensor; it may be a stack of them."""
    return info.shape[-2]


def _matrices(height: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The matrices of a stack that rows `start` to `stop` lie in, and which rows of each."""
    for matrix in range(start // height, -(-stop // height)):
        first = matrix * height
        yield matrix, max(start - first, 0), min(stop - first, height)


def _chunks(begin: int, end: int, every: int, columns: int) -> Iterator[tuple[int, int]]:
    """Rows in runs of about `_AT_ONCE` elements, which end at whole groups."""
    step = max(1, _AT_ONCE // (columns * every)) * every
    while begin < end:
        next_begin = min((begin + step) // every * every, end)
        yield begin, next_begin
        begin = next_begin


def _rounded_names(
    store: TensorReader, architecture: Architecture, scheme: Scheme
) -> Mapping[str, bool]:
    """Tensors that a quantizer rounds, and whether each is stored as (in, out)."""
    found: dict[str, bool] = {}
    for plan in architecture.layers:
        for refs in (plan.refs, *plan.experts):
            for role, ref in refs.items():
                if not any(word in role for word in _ALONE):
                    found[ref.weight] = ref.transposed
    # What only decides attention scores is no part of a block here, and quantized all the same.
    reasons = [UNUSED_REASONS["scores"]]
    if scheme.embeddings:
        reasons.append(UNUSED_REASONS["after"])
        if architecture.embedding is not None:
            found[architecture.embedding.tokens] = False
    for name, reason in architecture.unused.items():
        if reason in reasons and name.endswith(".weight"):
            found.setdefault(name, False)
    return {
        name: transposed
        for name, transposed in found.items()
        if _fits(store.info(name), scheme, transposed)
    }


def _fits(info: TensorInfo, scheme: Scheme, transposed: bool) -> bool:
    """Whether the tensor is a matrix, of whole groups where these are needed."""
    if len(info.shape) < 2 or info.unreadable or min(info.shape[-2:]) < 2:
        return False
    width = info.shape[-2 if transposed else -1]
    return not (scheme.whole_groups and isinstance(scheme.span, int) and width % scheme.span)


@cache
def _code_sha256() -> str:
    """Of the code that rounds: another one gives another signature."""
    digest = hashlib.sha256()
    for name in ("encoders.py", "rounding.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()
