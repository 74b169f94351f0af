"""What all encodings of quantized weights share: the stored parts, and rows made from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptforensics.errors import TensorError
from ckptforensics.tensors.info import TensorInfo, element_count
from ckptforensics.tensors.reader import TensorReader

if TYPE_CHECKING:
    from ckptforensics.arrays import Array, Bytes, Floats


# Dequantizes rows `start` to `stop` into a fresh float32 matrix.
RowReader = Callable[[int, int], "Floats"]

_CODES = MappingProxyType(
    {
        "U8": "u1", "I8": "i1", "BOOL": "u1", "F8_E4M3": "u1", "F8_E8M0": "u1",
        "I16": "<i2", "I32": "<i4", "U32": "<u4", "I64": "<i8",
    }
)  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
_LONGEST_SMALL = 64  # elements of a part that only describes others


class Parts:
    """The stored tensors whose names begin alike.

    Attributes
    ----------
    store : of the file's own tensors
    stem : what the names begin with, up to and including the last dot
    config : the quantization configuration
    names : full names of the parts that were asked for
    """

    def __init__(self, store: TensorReader, stem: str, config: Mapping[str, Any]) -> None:
        self.store, self.stem, self.config = store, stem, config
        self.names: dict[str, None] = {}

    def __contains__(self, part: str) -> bool:
        return self.stem + part in self.store

    def info(self, part: str) -> TensorInfo:
        """Header entry of a part; TensorError if it is missing."""
        info = self.store.info(self.stem + part)
        self.names[info.name] = None
        return info

    def note(self, *parts: str) -> None:
        """Count parts that are not needed for the weight's values as its own if present."""
        for part in parts:
            if part in self:
                self.info(part)

    def shape(
        self, part: str, *, dtypes: Sequence[str], axes: int | None = None
    ) -> tuple[int, ...]:
        """Shape of a part; TensorError if its type or number of axes is another."""
        info = self.info(part)
        if info.dtype not in dtypes:
            raise self.wrong(
                part, f"elements of type {info.dtype} where {' or '.join(dtypes)} is expected"
            )
        if axes is not None and len(info.shape) != axes:
            raise self.wrong(part, f"{len(info.shape)} axes where {axes} are expected")
        if 0 in info.shape:
            raise self.wrong(part, "there are no elements")
        return info.shape

    def require(self, part: str, shape: tuple[int, ...], *, dtypes: Sequence[str]) -> None:
        """TensorError if the part does not have this shape and one of these types."""
        found = self.shape(part, dtypes=dtypes)
        if found != shape:
            raise self.wrong(part, f"the shape is {times(found)}, expected {times(shape)}")

    def wrong(self, part: str, what: str) -> TensorError:
        """The error that something about a part is wrong."""
        path = self.store.info(self.stem + part).path if part in self else None
        return TensorError(what, path=path, tensor=self.stem + part)

    def floats(self, part: str) -> Floats:
        """A part as float32, in its own shape; E8M0 scales become powers of two."""
        info = self.info(part)
        if info.dtype in ("U8", "F8_E8M0"):
            return power_of_two(self.codes(part))
        return self.store.read(info.name)

    def codes(self, part: str) -> Array:
        """A part's elements as they are stored, in its own shape: a view of the file."""
        info = self.info(part)
        return self.store.stored_bytes(info.name).view(_CODES[info.dtype]).reshape(info.shape)

    def small(self, part: str) -> list[Any]:
        """The values of a part that only describes others: a shape, a number of bits."""
        info = self.info(part)
        count = element_count(info.shape)
        if count is None or not 0 < count <= _LONGEST_SMALL or info.dtype not in _CODES:
            raise self.wrong(part, "a few integers are expected")
        return self.codes(part).reshape(-1).tolist()


class Quantized(ABC):
    """One logical weight that is stored as several tensors.

    Attributes
    ----------
    parts : what it is stored as
    name : of the logical weight
    dtype : name of the encoding, as shown
    shape : of the logical weight
    granule : rows that are best read together
    module : it is the weight (out, in) of a linear map, whatever the original module's layout was
    """

    granule = 1
    module = True

    def __init__(self, parts: Parts, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self.parts, self.name, self.dtype, self.shape = parts, name, dtype, shape

    @abstractmethod
    def reader(self) -> RowReader:
        """Load the small parts once; the result dequantizes row ranges."""

    def info(self) -> TensorInfo:
        """Header entry as if the logical weight were stored; its bytes are those of its parts."""
        infos = [self.parts.store.info(name) for name in self.parts.names]
        first = infos[0]
        nbytes = sum(info.nbytes for info in infos)
        return TensorInfo(self.name, self.dtype, self.shape, first.path, first.offset, nbytes)


def times(shape: Sequence[int]) -> str:
    """A shape in words."""
    return " x ".join(str(n) for n in shape) or "a scalar"


def power_of_two(exponents: Array) -> Floats:
    """E8M0 scales: 2 to the code minus 127, NaN for code 255."""
    import numpy as np

    with np.errstate(over="ignore"):  # of code 255 only
        values = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
    return np.where(exponents == 255, np.float32(np.nan), values)


def unpack(words: Array, bits: int, count: int) -> Bytes:
    """Unsigned numbers of `bits` bits from rows of little-endian words, first in the low bits.

    Numbers follow each other without gaps and may cross the border of a word.

    Parameters
    ----------
    words : (rows, words) of any integer type
    bits : from 1 to 8
    count : numbers to take from each row

    Returns
    -------
    (rows, count)
    """
    import numpy as np

    stream = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    mask = np.uint8((1 << bits) - 1)
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        return ((stream[:, :, None] >> shifts) & mask).reshape(len(words), -1)[:, :count]
    begin = np.arange(count) * bits
    byte, shift = begin >> 3, (begin & 7).astype(np.uint16)
    padded = np.pad(stream, ((0, 0), (0, 1))).astype(np.uint16)
    pairs = padded[:, byte] | padded[:, byte + 1] << np.uint16(8)
    return (pairs >> shift).astype(np.uint8) & mask


def spread(scales: Array, block: int, columns: int) -> Array:
    """Scales of column blocks, repeated for each column: (rows, blocks) to (rows, columns)."""
    import numpy as np

    if scales.shape[1] == 1:
        return scales
    return np.repeat(scales, block, axis=1)[:, :columns]
