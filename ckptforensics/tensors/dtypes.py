"""Element types: how stored bytes become float32.

Floating types of safetensors are decoded here; GGUF's block formats by the `gguf` package, which
implements every one of them in NumPy and imports on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptforensics.errors import FormatError, MissingDependency, TensorError

if TYPE_CHECKING:
    from ckptforensics.arrays import Bytes, Floats

    Bytes = Bytes

# Bits per element of every type the safetensors format defines.
SAFETENSORS_BITS = MappingProxyType(
    {
        "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
        "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
        "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
        "I32": 32, "U32": 32, "F32": 32,
        "F64": 64, "I64": 64, "U64": 64, "C64": 64,
    }
)  # fmt: skip


@dataclass(frozen=True)
class GgufType:
    """A GGUF element type: elements and bytes of one block."""

    name: str
    block_elements: int
    block_bytes: int


# Types whose block is one element; all others are described by the `gguf` package.
_GGUF_PLAIN = MappingProxyType(
    {
        0: GgufType("F32", 1, 4),
        1: GgufType("F16", 1, 2),
        24: GgufType("I8", 1, 1),
        25: GgufType("I16", 1, 2),
        26: GgufType("I32", 1, 4),
        27: GgufType("I64", 1, 8),
        28: GgufType("F64", 1, 8),
        30: GgufType("BF16", 1, 2),
    }
)


def gguf_type(number: int, *, path: Path, tensor: str) -> GgufType:
    """The GGUF element type with this number.

    Raises
    ------
    FormatError
        if no such type exists.
    MissingDependency
        if it is a quantized type and the `gguf` package is not installed.
    """
    if number in _GGUF_PLAIN:
        return _GGUF_PLAIN[number]
    gguf = _gguf(path)
    try:
        kind = gguf.GGMLQuantizationType(number)
        elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise FormatError(f"unknown element type {number}", path=path, tensor=tensor) from None
    return GgufType(kind.name, elements, nbytes)


def decoder(dtype: str, *, path: Path, tensor: str) -> Callable[[Bytes, Floats], None]:
    """A function that decodes stored bytes into a flat float32 array of the right size.

    Raises
    ------
    TensorError
        if elements of this type are not numbers that can be decoded alone.
    """
    if dtype in _DECODERS:
        return _DECODERS[dtype]
    if dtype in SAFETENSORS_BITS:
        raise _undecodable(dtype, path, tensor)
    return _gguf_decoder(dtype, path, tensor)


def _undecodable(dtype: str, path: Path, tensor: str) -> TensorError:
    return TensorError(f"elements of type {dtype} cannot be decoded", path=path, tensor=tensor)


def _gguf(path: Path) -> Any:
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise MissingDependency(
            "the file holds quantized tensors, which need the 'gguf' package",
            path=path,
            hint="pip install gguf",
        ) from None
    return gguf


def _gguf_decoder(dtype: str, path: Path, tensor: str) -> Callable[[Bytes, Floats], None]:
    gguf = _gguf(path)
    kind = gguf.GGMLQuantizationType[dtype]

    def decode(raw: Bytes, out: Floats) -> None:
        import numpy as np

        # Blocks do not span rows, so a range of rows is one long row of blocks; given as one, the
        # package dequantizes it in one go instead of 16 rows at a time. What a damaged scale makes
        # of its block is reported by the reader.
        try:
            with np.errstate(all="ignore"):
                out[:] = gguf.quants.dequantize(raw.reshape(1, -1), kind).reshape(-1)
        except NotImplementedError:
            raise _undecodable(dtype, path, tensor) from None

    return decode


def _cast(code: str) -> Callable[[Bytes, Floats], None]:
    def decode(raw: Bytes, out: Floats) -> None:
        import numpy as np

        # A float64 beyond the range of float32 becomes infinite and is reported by the reader, as
        # is a NaN of any kind.
        with np.errstate(over="ignore", invalid="ignore"):
            out[:] = raw.view(code)

    return decode


def _decode_bf16(raw: Bytes, out: Floats) -> None:
    # BF16 is the high half of a float32. Widening and then shifting in place, while the block is
    # in the cache, beats storing the halves and a shift that widens.
    bits = out.view("<u4")
    bits[:] = raw.view("<u2")
    bits <<= 16


def _decode_f8(exponent_bits: int, *, has_infinity: bool) -> Callable[[Bytes, Floats], None]:
    def decode(raw: Bytes, out: Floats) -> None:
        out[:] = _f8_values(exponent_bits, has_infinity)[raw]

    return decode


@cache
def _f8_values(exponent_bits: int, has_infinity: bool) -> Floats:
    """The 256 values of an 8-bit float with this exponent width (OCP FP8, arXiv 2209.05433).

    E5M2 keeps IEEE's infinities and NaNs; E4M3 gives up both but for one NaN pattern.
    """
    import numpy as np

    code = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    bias = (1 << (exponent_bits - 1)) - 1
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    magnitude = np.where(
        exponent == 0, np.ldexp(mantissa, 1 - bias), np.ldexp(1 + mantissa, exponent - bias)
    )
    if has_infinity:
        top = exponent == (1 << exponent_bits) - 1
        magnitude = np.where(top, np.where(mantissa == 0, np.inf, np.nan), magnitude)
    else:
        magnitude = np.where((code & 0x7F) == 0x7F, np.nan, magnitude)
    return np.where(code < 128, magnitude, -magnitude).astype(np.float32)


_DECODERS = MappingProxyType(
    {
        "F64": _cast("<f8"),
        "F32": _cast("<f4"),
        "F16": _cast("<f2"),
        "BF16": _decode_bf16,
        "F8_E4M3": _decode_f8(4, has_infinity=False),
        "F8_E5M2": _decode_f8(5, has_infinity=True),
    }
)
