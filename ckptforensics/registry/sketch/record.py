"""A sketch as arrays, and as the document that keeps them in text."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

from ckptforensics.arrays import Doubles, Ints
from ckptforensics.errors import ResultError
from ckptforensics.registry.sketch.spectra import OF, Of
from ckptforensics.results.sketch import (
    Sketched,
    SketchedAttention,
    SketchedHeads,
    SketchedSpectra,
    SketchedTokens,
)

# What names the tokens of a sketch.
By = Literal["strings", "ids"]
BY: tuple[By, ...] = get_args(By)

_Spectra = TypeVar("_Spectra", bound=SketchedSpectra)


@dataclass(frozen=True)
class Tokens:
    """The digests of tokens in increasing order, and the projection (tokens, tokens) of them."""

    names: Ints
    likeness: Doubles


@dataclass(frozen=True)
class Sketch:
    """What models are found by.

    Attributes
    ----------
    tokens : by what names them, `strings` or `ids`
    spectra : (count, ranks) by what they are of, `heads` or `attention`
    """

    tokens: Mapping[By, Tokens]
    spectra: Mapping[Of, Doubles]


def tokens_record(by: By, tokens: Tokens) -> SketchedTokens:
    """As the document keeps them: in steps of a 127th of the largest."""
    upper = tokens.likeness[np.triu_indices(len(tokens.names), 1)]
    unit = float(np.abs(upper).max()) / 127 or 1.0
    return SketchedTokens(
        by=by,
        count=len(tokens.names),
        names=_text(tokens.names.astype("<u4")),
        likeness=_text(np.rint(upper / unit).astype(np.int8)),
        unit=unit,
    )


def heads_record(heads: Doubles, total: int) -> SketchedHeads:
    """As the document keeps the heads that were chosen of so many."""
    return _spectra_record(SketchedHeads, heads, total)


def attention_record(attention: Doubles, total: int) -> SketchedAttention:
    """As the document keeps the layers that were chosen of so many."""
    return _spectra_record(SketchedAttention, attention, total)


def _spectra_record(kind: type[_Spectra], spectra: Doubles, total: int) -> _Spectra:
    """In steps of a 32,767th of the largest."""
    unit = float(np.abs(spectra).max()) / 32_767 or 1.0
    return kind(
        count=len(spectra),
        total=total,
        ranks=spectra.shape[1],
        values=_text(np.rint(spectra / unit).astype("<i2")),
        unit=unit,
    )


def sketch_of(record: Sketched) -> Sketch:
    """The arrays of a record.

    Raises
    ------
    ResultError
        if they are not as long as it says.
    """
    tokens: dict[By, Tokens] = {}
    for part in record.tokens:
        count = part.count
        names = _array(part.names, "<u4", (count,)).astype(np.int64)
        upper = _array(part.likeness, "i1", (count * (count - 1) // 2,))
        if (np.diff(names) <= 0).any():
            raise ResultError("the names of a sketch's tokens are not in order")
        likeness = np.zeros((count, count))
        likeness[np.triu_indices(count, 1)] = upper * part.unit
        tokens[part.by] = Tokens(names, likeness + likeness.T)
    parts: dict[Of, SketchedSpectra | None] = {of: getattr(record, of) for of in OF}
    spectra = {
        of: _array(kept.values, "<i2", (kept.count, kept.ranks)) * kept.unit
        for of, kept in parts.items()
        if kept is not None
    }
    return Sketch(tokens, spectra)


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _array(text: str, kind: str, shape: tuple[int, ...]) -> Doubles:
    try:
        data = base64.b64decode(text)
    except ValueError:
        data = b""
    if len(data) != np.dtype(kind).itemsize * int(np.prod(shape)):
        raise ResultError("an array of the sketch is not as long as it says")
    return np.frombuffer(data, kind).astype(np.float64).reshape(shape)
