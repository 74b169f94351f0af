"""MLX's affine quantization: codes in 32-bit words along the inputs, a scale and bias a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptforensics.errors import NothingAnalysable
from ckptforensics.tensors.quantized.base import FLOATS, Parts, Quantized, RowReader, unpack

if TYPE_CHECKING:
    from ckptforensics.arrays import Floats

_WORD = 32
_BITS = (2, 3, 4, 5, 6, 8)


class Mlx(Quantized):
    """scale code + bias. Parts: weight (out, in bits / 32), scales and biases (out, groups)."""

    def __init__(self, parts: Parts) -> None:
        own = parts.config.get(parts.stem.rstrip("."))
        config = {**parts.config, **own} if isinstance(own, dict) else parts.config
        mode = config.get("mode", "affine")
        if mode != "affine":
            raise NothingAnalysable(
                f"the weights are quantized (MLX, {mode}), which this version does not read",
                path=parts.store.containers[0].path,
                hint="save them with mlx_lm.convert --dequantize",
            )
        rows, words = parts.shape("weight", dtypes=("U32",), axes=2)
        _, groups = parts.shape("scales", dtypes=FLOATS, axes=2)
        parts.require("scales", (rows, groups), dtypes=FLOATS)
        parts.require("biases", (rows, groups), dtypes=FLOATS)
        size, self.bits = config.get("group_size", 64), config.get("bits", 4)
        if self.bits not in _BITS:
            raise parts.wrong("weight", f"codes of {self.bits!r} bits are not known")
        if type(size) is not int or size < 1 or words * _WORD != groups * size * self.bits:
            raise parts.wrong(
                "weight",
                f"{words} words a row are not {groups} groups of {size!r} codes of "
                f"{self.bits!r} bits",
            )
        self.group_size = size
        super().__init__(parts, f"{parts.stem}weight", f"MLX{self.bits}", (rows, groups * size))

    def reader(self) -> RowReader:
        """See `Quantized`."""
        import numpy as np

        parts, bits, columns = self.parts, self.bits, self.shape[1]
        codes = parts.codes("weight")
        scales, biases = parts.floats("scales"), parts.floats("biases")

        def read(start: int, stop: int) -> Floats:
            out = unpack(codes[start:stop], bits, columns).astype(np.float32)
            out = out.reshape(stop - start, -1, self.group_size)
            out *= scales[start:stop, :, None]
            out += biases[start:stop, :, None]
            return out.reshape(stop - start, columns)

        return read
