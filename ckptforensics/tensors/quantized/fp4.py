"""Floating-point numbers of 4 bits with a scale for every few: MXFP4 and NVFP4."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptforensics.tensors.quantized.base import Parts, Quantized, RowReader, power_of_two, spread
from ckptforensics.tensors.quantized.scaled import ACTIVATIONS

if TYPE_CHECKING:
    from ckptforensics.arrays import Array, Bytes, Floats

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_MX_BLOCK, _NV_BLOCK = 32, 16


def fp4(packed: Bytes) -> Floats:
    """Values (E2M1) of pairs of codes, the first in the low half: (..., n) to (..., 2 n)."""
    import numpy as np

    values = np.array([*_MAGNITUDES, *(-m for m in _MAGNITUDES)], np.float32)
    pairs = values[np.stack(np.divmod(np.arange(256), 16)[::-1], axis=1)]
    return pairs[packed].reshape(*packed.shape[:-1], -1)


class Mxfp4Experts(Quantized):
    """gpt-oss's stacked experts: value 2^(scale - 127), blocks of 32 along the inputs.

    Parts: `X_blocks` (experts, out, in / 32, 16) and `X_scales` (experts, out, in / 32). The
    logical tensor X is (experts, in, out), as the model holds it without quantization.
    """

    granule = _MX_BLOCK
    module = False

    def __init__(self, parts: Parts) -> None:
        shape = parts.shape("_blocks", dtypes=("U8",), axes=4)
        experts, outputs, blocks, size = shape
        if size * 2 != _MX_BLOCK:
            raise parts.wrong("_blocks", f"blocks of {size} bytes; those of MXFP4 have 16")
        parts.require("_scales", shape[:3], dtypes=("U8", "F8_E8M0"))
        super().__init__(parts, parts.stem, "MXFP4", (experts, blocks * _MX_BLOCK, outputs))

    def reader(self) -> RowReader:
        """See `Quantized`."""
        import numpy as np

        codes, exponents = self.parts.codes("_blocks"), self.parts.codes("_scales")
        inputs = self.shape[1]

        def of_expert(expert: int, start: int, stop: int) -> Floats:
            first, last = start // _MX_BLOCK, -(-stop // _MX_BLOCK)
            values = fp4(codes[expert, :, first:last])
            with np.errstate(over="ignore", invalid="ignore"):
                values *= power_of_two(exponents[expert, :, first:last])[:, :, None]
            flat = values.reshape(len(values), -1)
            return flat[:, start - first * _MX_BLOCK : stop - first * _MX_BLOCK].T

        def read(start: int, stop: int) -> Floats:
            found = []
            for expert in range(start // inputs, -(-stop // inputs)):
                begin = expert * inputs
                found.append(of_expert(expert, max(start - begin, 0), min(stop - begin, inputs)))
            return np.concatenate(found)

        return read


class Fp4Linear(Quantized):
    """A linear map (out, in) of 4-bit floats: value scale, for NVFP4 with a scale of the scales.

    Parts: `weight_packed` (compressed-tensors) or `weight` (modelopt), (out, in / 2);
    `weight_scale` (out, in / 16) in FP8 for NVFP4, (out, in / 32) in E8M0 for MXFP4; and for
    NVFP4 `weight_global_scale`, by which is divided, or `weight_scale_2`, by which is multiplied.
    """

    def __init__(self, parts: Parts, weight: str) -> None:
        self.weight = weight
        rows, half = parts.shape(weight, dtypes=("U8",), axes=2)
        columns = 2 * half
        self.divisor = "weight_global_scale"
        self.factor = "weight_scale_2"
        scale = parts.shape("weight_scale", dtypes=("F8_E4M3", "U8", "F8_E8M0"), axes=2)
        nv = parts.info("weight_scale").dtype == "F8_E4M3"
        self.block = _NV_BLOCK if nv else _MX_BLOCK
        parts.require(
            "weight_scale", (rows, -(-columns // self.block)), dtypes=("F8_E4M3", "U8", "F8_E8M0")
        )
        self.scale_shape = scale
        self.second: str | None = None
        if nv:
            self.second = self.divisor if weight == "weight_packed" else self.factor
            if parts.shape(self.second, dtypes=("F32", "F16", "BF16")) not in ((), (1,), (1, 1)):
                raise parts.wrong(self.second, "one number is expected")
        parts.note(*ACTIVATIONS)
        dtype = "NVFP4" if nv else "MXFP4"
        super().__init__(parts, parts.stem + "weight", dtype, (rows, columns))

    def reader(self) -> RowReader:
        """See `Quantized`."""
        import numpy as np

        parts, columns = self.parts, self.shape[1]
        codes = parts.codes(self.weight)
        scales: Array = parts.floats("weight_scale")
        if self.second is not None:
            second = parts.floats(self.second).reshape(-1)[0]
            with np.errstate(all="ignore"):
                scales = scales / second if self.second == self.divisor else scales * second

        def read(start: int, stop: int) -> Floats:
            out = fp4(codes[start:stop])
            with np.errstate(all="ignore"):
                out *= spread(scales[start:stop], self.block, columns)
            return out

        return read
