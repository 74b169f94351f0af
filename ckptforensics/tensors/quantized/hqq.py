"""HQQ: codes of 1 to 8 bits with real-valued zeros, packed along the groups."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from ckptforensics.errors import NothingAnalysable
from ckptforensics.tensors.quantized.base import FLOATS, Parts, Quantized, RowReader, times

if TYPE_CHECKING:
    from ckptforensics.arrays import Floats

# Array in an element of the packed tensor, and the bits of each, by the name of the packing.
_PACKINGS = MappingProxyType(
    {"8bit_u8": (1, 8), "4bit_u8": (2, 4), "3bit_32": (10, 3), "2bit_u8": (4, 2), "1bit_u8": (8, 1)}
)
# Beside W_q; what is not listed as read only describes how it was made.
_DESCRIPTIONS = (
    "nbits", "view_as_float", "unpack_view_dtype", "quant_scale", "quant_zero", "compute_dtype",
    "offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize",
    "round_zero",
)  # fmt: skip


class Hqq(Quantized):
    """(code - zero) scale over the weight seen as (groups, size) or, on axis 0, (size, groups).

    Parts: W_q, scale, zero, and as tensors of a few integers shape, group_size, axis, packing.
    The rows of the two-dimensional view are packed: the first in the highest bits, a whole part of
    the view away from the second.
    """

    def __init__(self, parts: Parts) -> None:
        packing = "".join(chr(n & 0x7F) for n in parts.small("packing"))
        per, self.bits = _PACKINGS.get(packing, (0, 0))
        if not per:
            raise parts.wrong("packing", f"the packing {packing!r} is not known")
        for flag in ("view_as_float", "quant_scale", "quant_zero"):
            if flag in parts and any(parts.small(flag)):
                raise NothingAnalysable(
                    f"the weights are quantized (hqq with {flag}), "
                    "which this version does not read",
                    path=parts.info("W_q").path,
                )
        shape = parts.small("shape")
        axis, size = parts.small("axis")[0], parts.small("group_size")[0]
        if len(shape) != 2 or not all(0 < n < 1 << 31 for n in shape):
            raise parts.wrong("shape", f"a weight of {times(shape)}")
        elements = shape[0] * shape[1]
        if axis not in (0, 1) or not 0 < size <= elements or elements % size:
            raise parts.wrong("group_size", f"groups of {size} along axis {axis} of {times(shape)}")
        groups = elements // size
        rows, self.width = (groups, size) if axis == 1 else (size, groups)
        self.step = -(-rows // per)
        self.per, self.axis = per, axis
        word = "I32" if packing == "3bit_32" else "U8"
        parts.require("W_q", (self.step, self.width), dtypes=(word,))
        for part in ("scale", "zero"):
            shapes = ((groups, 1) if axis == 1 else (1, groups), (groups,), (1, 1), (1,), ())
            if parts.shape(part, dtypes=FLOATS) not in shapes:
                raise parts.wrong(part, f"one number for each of {groups} groups is expected")
        parts.note(*_DESCRIPTIONS)
        super().__init__(parts, parts.stem + "weight", f"HQQ{self.bits}", (shape[0], shape[1]))

    def reader(self) -> RowReader:
        """See `Quantized`."""
        import numpy as np

        columns = self.shape[1]
        codes = self.parts.codes("W_q").reshape(-1)
        scale, zero = (self.parts.floats(part).reshape(-1) for part in ("scale", "zero"))
        mask = (1 << self.bits) - 1

        def read(start: int, stop: int) -> Floats:
            row, column = np.divmod(np.arange(start * columns, stop * columns), self.width)
            part, packed = np.divmod(row, self.step)
            shift = (self.per - 1 - part) * self.bits
            out = ((codes[packed * self.width + column] >> shift) & mask).astype(np.float32)
            group = row if self.axis == 1 else column
            out -= zero[group] if len(zero) > 1 else zero
            out *= scale[group] if len(scale) > 1 else scale
            return out.reshape(stop - start, columns)

        return read
