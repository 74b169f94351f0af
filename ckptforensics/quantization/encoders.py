"""What quantizers leave of a matrix: rounded to codes and back, as float32.

Rows are the output's, (out, in), whatever the file's layout. Scales stay in float32 where a format
does not say how they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.errors import MissingDependency

# Smoothquant's bound below the largest entry: a matrix of zeros stays one.
FLOOR = np.float32(1e-5)
# Largest finite values of the FP8 types.
_E4M3, _E5M2 = 448.0, 57344.0
_GROUP = 128
_GGUF_BLOCK = 32

# What shares a scale: the matrix, one of its rows, or this many neighbours in a row.
Span = Literal["tensor", "row"] | int
# Rows, each of which shares a scale at least, and the largest |entry| of what does, broadcastable.
Encode = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True)
class Scheme:
    """A way to round weights.

    Attributes
    ----------
    words : in words
    span : what shares a scale
    encode : rounds entries beside their largest |entry|; where `span` is a number, whole groups,
        a row each
    embeddings : whether its tools round token embeddings too
    whole_groups : rows must be whole groups; others stay as they are
    """

    words: str
    span: Span
    encode: Encode
    embeddings: bool = False
    whole_groups: bool = False

    def rows(self, x: Floats) -> Floats:
        """Whole rows rounded, where `span` is not the matrix."""
        if not isinstance(self.span, int):
            return self.encode(x, np.abs(x).max(axis=1, keepdims=True))
        out = np.empty_like(x)
        whole = x.shape[1] - x.shape[1] % self.span
        for part in (slice(0, whole), slice(whole, None)):
            some = np.ascontiguousarray(x[:, part])
            if some.size:
                groups = some.reshape(-1, min(self.span, some.shape[1]))
                done = self.encode(groups, np.abs(groups).max(axis=1, keepdims=True))
                out[:, part] = done.reshape(some.shape)
        return out


def symmetric(
    x: Floats, largest: float | Floats, *, steps: float, codes: tuple[int, int]
) -> Floats:
    """Whole multiples of largest / steps, halves to even, with codes in a range."""
    step = np.maximum(np.asarray(largest, np.float32), FLOOR) / np.float32(steps)
    return (np.clip(np.rint(x / step), *codes) * step).astype(np.float32, copy=False)


def asymmetric(x: Floats, largest: Floats) -> Floats:
    """Sixteen levels from the smallest entry of each row to its largest, 0 among them."""
    low = np.minimum(x.min(axis=1, keepdims=True), 0)
    high = np.maximum(x.max(axis=1, keepdims=True), 0)
    step = np.maximum(high - low, FLOOR) / np.float32(15)
    zero = np.clip(np.rint(-low / step), 0, 15)
    return (np.clip(np.rint(x / step) + zero, 0, 15) - zero) * step


def float8(x: Floats, *, mantissa: int, least: int, most: float) -> Floats:
    """The nearest 8-bit float, halves to an even mantissa; what is beyond the largest is that.

    Parameters
    ----------
    mantissa : its bits
    least : exponent of the smallest normal number
    most : largest finite number
    """
    exponent = np.maximum(np.frexp(x)[1] - 1, least)
    step = np.ldexp(np.float32(1), exponent - mantissa)
    return np.clip(np.rint(x / step) * step, -most, most).astype(np.float32, copy=False)


def _scaled(x: Floats, largest: Floats, *, most: float, mantissa: int, least: int) -> Floats:
    scale = np.maximum(largest, FLOOR) / np.float32(most)
    small = (x / scale).astype(np.float32, copy=False)
    found = float8(small, mantissa=mantissa, least=least, most=most) * scale
    return found.astype(np.float32, copy=False)


def _gguf(x: Floats, largest: Floats, *, kind: str) -> Floats:
    """There and back by the `gguf` package, which does what llama.cpp does."""
    quants = _quants()
    number = quants.GGMLQuantizationType[kind]
    with np.errstate(all="ignore"):
        # One long row of blocks is coded at once, many rows sixteen at a time.
        coded = quants.quantize(x.reshape(1, -1), number)
        decoded: Floats = quants.dequantize(coded, number)
    return decoded.reshape(x.shape)


def _quants() -> Any:
    try:
        from gguf import quants
    except ImportError:
        raise MissingDependency(
            "rounding to a GGUF type needs the 'gguf' package", hint="pip install gguf"
        ) from None
    return quants


def _of_gguf(kind: str, words: str) -> Scheme:
    encode = partial(_gguf, kind=kind)
    return Scheme(f"{words}, as llama-quantize --pure", _GGUF_BLOCK, encode, True, True)


# Smoothquant's.
int8 = partial(symmetric, steps=127, codes=(-127, 127))
_INT4 = partial(symmetric, steps=7.5, codes=(-8, 7))
_FP8 = partial(_scaled, most=_E4M3, mantissa=3, least=-6)
_FP8_WIDE = partial(_scaled, most=_E5M2, mantissa=2, least=-14)

SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "int8": Scheme("8 bits, one scale a tensor", "tensor", int8),
        "int8-channel": Scheme("8 bits, a scale an output", "row", int8),
        "w8a8": Scheme("8 bits, one scale a tensor, as W8A8 leaves the weights", "tensor", int8),
        "int4-g128": Scheme("4 bits, groups of 128, symmetric", _GROUP, _INT4),
        "int4-g128-asym": Scheme("4 bits, groups of 128, asymmetric", _GROUP, asymmetric),
        "q4_0": _of_gguf("Q4_0", "4 bits, groups of 32"),
        "q4_1": _of_gguf("Q4_1", "4 bits, groups of 32 with an offset"),
        "q5_0": _of_gguf("Q5_0", "5 bits, groups of 32"),
        "q5_1": _of_gguf("Q5_1", "5 bits, groups of 32 with an offset"),
        "q8_0": _of_gguf("Q8_0", "8 bits, groups of 32"),
        "mxfp4": _of_gguf("MXFP4", "4-bit floats, groups of 32"),
        "fp8": Scheme("FP8 (E4M3), one scale a tensor", "tensor", _FP8),
        "fp8-channel": Scheme("FP8 (E4M3), a scale an output", "row", _FP8),
        "fp8-e5m2": Scheme("FP8 (E5M2), one scale a tensor", "tensor", _FP8_WIDE),
    }
)
