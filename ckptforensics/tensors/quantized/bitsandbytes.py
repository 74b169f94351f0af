"""bitsandbytes: int8 with a scale for each row, and 4-bit codes into a table (NF4, FP4)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ckptforensics.errors import NothingAnalysable
from ckptforensics.sources import parse_json_object
from ckptforensics.tensors.quantized.base import FLOATS, Parts, Quantized, RowReader, times

if TYPE_CHECKING:
    from ckptforensics.arrays import Array, Floats

_LARGEST_STATE = 1 << 16
_INT8_RANGE = 127
KINDS = ("nf4", "fp4")


class Int8Rows(Quantized):
    """LLM.int8(): code SCB / 127.

    Parts: weight (out, in) int8 and SCB (out); weight_format is 0 for rows as they are.
    """

    def __init__(self, parts: Parts) -> None:
        rows, columns = parts.shape("weight", dtypes=("I8",), axes=2)
        parts.require("SCB", (rows,), dtypes=FLOATS)
        if "weight_format" in parts and any(parts.small("weight_format")):
            raise NothingAnalysable(
                "the weights are quantized (bitsandbytes int8, rearranged for a device), "
                "which this version does not read",
                path=parts.info("weight").path,
            )
        super().__init__(parts, parts.stem + "weight", "INT8", (rows, columns))

    def reader(self) -> RowReader:
        """See `Quantized`."""
        import numpy as np

        codes = self.parts.codes("weight")
        scales = self.parts.floats("SCB")[:, None] / np.float32(_INT8_RANGE)

        def read(start: int, stop: int) -> Floats:
            return codes[start:stop].astype(np.float32) * scales[start:stop]

        return read


class Table4(Quantized):
    """NF4 and FP4: quant_map[code] absmax, blocks along the flattened weight.

    Parts: weight, packed two to a byte, the first in the high half; `weight.absmax`;
    `weight.quant_map` (16); `weight.quant_state.bitsandbytes__nf4`, a JSON object with shape and
    block size. With double quantization absmax is codes into `weight.nested_quant_map` times
    `weight.nested_absmax`, plus the state's nested_offset.
    """

    def __init__(self, parts: Parts, kind: str) -> None:
        state = _state(parts, f"weight.quant_state.bitsandbytes__{kind}")
        shape, self.block = state["shape"], state["blocksize"]
        elements = math.prod(shape)
        if parts.info("weight").nbytes != -(-elements // 2):
            raise parts.wrong("weight", f"the bytes are not half of {times(shape)} elements")
        parts.require("weight.quant_map", (16,), dtypes=FLOATS)
        blocks = -(-elements // self.block)
        self.nested = "weight.nested_absmax" in parts
        self.nested_block, self.offset = 1, 0.0
        if self.nested:
            self.nested_block = state.get("nested_blocksize", 0)
            self.offset = state.get("nested_offset", 0.0)
            if not _positive(self.nested_block) or not isinstance(self.offset, int | float):
                raise parts.wrong("weight.absmax", "the state of its quantization is incomplete")
            parts.require("weight.absmax", (blocks,), dtypes=("U8",))
            parts.require("weight.nested_quant_map", (256,), dtypes=FLOATS)
            outer = -(-blocks // self.nested_block)
            parts.require("weight.nested_absmax", (outer,), dtypes=FLOATS)
        else:
            parts.require("weight.absmax", (blocks,), dtypes=FLOATS)
        super().__init__(parts, parts.stem + "weight", kind.upper(), tuple(shape))

    def reader(self) -> RowReader:
        """See `Quantized`."""
        import numpy as np

        parts, columns = self.parts, self.shape[-1]
        stored = parts.store.stored_bytes(parts.stem + "weight")
        table = parts.floats("weight.quant_map")
        pairs = table[np.stack(np.divmod(np.arange(256), 16), axis=1)]
        scales: Array = self._absmax()

        def read(start: int, stop: int) -> Floats:
            begin, end = start * columns, stop * columns
            values = pairs[stored[begin // 2 : -(-end // 2)]].reshape(-1)
            values = values[begin % 2 : begin % 2 + end - begin]
            block = np.arange(begin, end) // self.block
            return (values * scales[block]).reshape(stop - start, columns)

        return read

    def _absmax(self) -> Floats:
        import numpy as np

        parts = self.parts
        if not self.nested:
            return parts.floats("weight.absmax")
        codes = parts.codes("weight.absmax")
        outer = np.repeat(parts.floats("weight.nested_absmax"), self.nested_block)[: len(codes)]
        values = parts.floats("weight.nested_quant_map")[codes] * outer
        return values + np.float32(self.offset)


def _state(parts: Parts, part: str) -> dict[str, Any]:
    """The parsed state; TensorError if shape or block size are impossible."""
    info = parts.info(part)
    if info.dtype != "U8" or not 0 < info.nbytes <= _LARGEST_STATE:
        raise parts.wrong(part, "this is not a JSON text in bytes")
    text = parts.store.stored_bytes(info.name).tobytes()
    state = parse_json_object(text, path=info.path, what=f"the quantization state '{info.name}'")
    shape = state.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(_positive(n) for n in (*shape, state.get("blocksize")))
    ):
        raise parts.wrong(part, "the shape or block size is missing or impossible")
    return state


def _positive(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 31
