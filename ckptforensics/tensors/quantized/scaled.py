"""Weights of 8 bits with scales beside them: FP8 of all kinds, and int8."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ckptforensics.errors import FormatError
from ckptforensics.tensors.quantized.base import FLOATS, Parts, Quantized, RowReader, spread, times

if TYPE_CHECKING:
    from ckptforensics.arrays import Array, Floats

FP8 = ("F8_E4M3", "F8_E5M2")
_SCALES = (*FLOATS, "F8_E8M0", "U8")
_MX_BLOCK = 32
# Beside a weight; for what enters or leaves the module, not for the weight.
ACTIVATIONS = (
    "input_scale", "input_scale_ub", "input_global_scale", "input_zero_point", "input_g_idx",
    "activation_scale", "output_scale", "output_zero_point",
)  # fmt: skip


class Scaled(Quantized):
    """(weight - zero) scale, with one scale for the tensor, a row, a group or a block.

    Parameters
    ----------
    parts : of the module
    weight : the part of 8-bit elements, (..., out, in)
    scale : the part of scales, whose grid over the last two axes tells the block's size
    """

    def __init__(self, parts: Parts, weight: str, scale: str) -> None:
        shape = parts.shape(weight, dtypes=(*FP8, "I8"))
        if len(shape) < 2:
            raise parts.wrong(weight, "the shape has fewer than 2 axes")
        self.weight, self.scale = weight, scale
        self.grid, self.block = _grid(parts, weight, scale)
        self.zero = f"{weight}_zero_point" if f"{weight}_zero_point" in parts else None
        if self.zero is not None:
            parts.require(self.zero, parts.info(scale).shape, dtypes=("I8", *FP8, *FLOATS))
        self.g_idx = f"{weight}_g_idx" if f"{weight}_g_idx" in parts else None
        if self.g_idx is not None:
            parts.require(self.g_idx, shape[-1:], dtypes=("I32", "I64"))
        parts.note(*ACTIVATIONS)
        info = parts.info(weight)
        dtype = "FP8" if info.dtype in FP8 else "INT8"
        super().__init__(parts, info.name, dtype, shape)

    def reader(self) -> RowReader:
        """See `Quantized`."""
        import numpy as np

        parts, name = self.parts, self.parts.stem + self.weight
        *_, rows, columns = self.shape
        grid_rows, grid_columns = self.grid
        scales = parts.floats(self.scale).reshape(-1, grid_columns)
        zeros: Array | None = None
        if self.zero is not None:
            integers = parts.info(self.zero).dtype == "I8"
            zeros = parts.codes(self.zero) if integers else parts.floats(self.zero)
            zeros = zeros.astype(np.float32).reshape(-1, grid_columns)
        groups = None if self.g_idx is None else group_index(parts, self.g_idx, grid_columns)
        integer = self.dtype == "INT8"
        codes = parts.codes(self.weight).reshape(-1, columns) if integer else None

        def of_columns(values: Array) -> Array:
            if groups is not None:
                return values[:, groups]
            return spread(values, self.block[1], columns)

        def read(start: int, stop: int) -> Floats:
            if codes is None:
                out = parts.store.read_rows(name, start, stop)
            else:
                out = codes[start:stop].astype(np.float32)
            stack, row = np.divmod(np.arange(start, stop), rows)
            at = stack * grid_rows + row // self.block[0]
            if len(scales) == 1:  # one for all
                at = np.zeros_like(at)
            if zeros is not None:
                out -= of_columns(zeros[at])
            with np.errstate(over="ignore", invalid="ignore"):
                out *= of_columns(scales[at])
            return out

        return read


def group_index(parts: Parts, part: str, groups: int) -> Array | None:
    """The group of each input column; None if the part says there is no order of its own.

    Raises
    ------
    FormatError
        if a column belongs to no group.
    """
    index = parts.codes(part)
    if (index == -1).any():  # never filled in: the columns are in order
        return None
    if index.min() < 0 or index.max() >= groups:
        raise FormatError(
            f"a column's group is not one of {groups}",
            path=parts.info(part).path,
            tensor=parts.stem + part,
        )
    return index.copy()


def _grid(parts: Parts, weight: str, scale: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Scales along the last two axes, and the block that each is for."""
    *lead, rows, columns = parts.info(weight).shape
    shape = parts.shape(scale, dtypes=_SCALES)
    if math.prod(shape) == 1:
        return (1, 1), (rows, columns)
    if shape == (rows,) and not lead:
        shape = (rows, 1)
    block = _configured_block(parts)
    expected = tuple(-(-n // b) for n, b in zip((rows, columns), block, strict=True))
    if len(shape) == len(lead) + 2 and shape[:-2] == tuple(lead):
        grid = shape[-2], shape[-1]
        if grid == expected:
            return grid, block
        if grid in ((1, 1), (rows, 1)):
            return grid, (rows // grid[0], columns)
        if grid[0] == rows and columns % grid[1] == 0:
            size = columns // grid[1]
            if size in (_group_size(parts), _MX_BLOCK):
                return grid, (1, size)
        if grid == (1, columns):
            return grid, (rows, 1)
    raise parts.wrong(
        scale,
        f"scales of shape {times(shape)} do not fit a weight of {times((*lead, rows, columns))} "
        f"in blocks of {times(block)}",
    )


def _configured_block(parts: Parts) -> tuple[int, int]:
    """The block that the configuration names; one that fits nothing where it names none."""
    found = parts.config.get("weight_block_size") or _weights(parts).get("block_structure")
    if found is None:
        return 1 << 62, 1 << 62
    if isinstance(found, str) and found.count("x") == 1:
        found = [int(n) if n.isdecimal() else n for n in found.split("x")]
    if (
        not isinstance(found, list)
        or len(found) != 2
        or not all(type(n) is int and 0 < n < 1 << 31 for n in found)
    ):
        raise FormatError(
            f"the configuration gives the block size of the weights as {found!r}",
            path=parts.store.containers[0].path,
        )
    return found[0], found[1]


def _group_size(parts: Parts) -> int | None:
    size = _weights(parts).get("group_size")
    return size if type(size) is int and size > 0 else None


def _weights(parts: Parts) -> dict[str, object]:
    """How the weights of compressed-tensors' only or first group are quantized."""
    groups = parts.config.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        if isinstance(group, dict) and isinstance(weights := group.get("weights"), dict):
            return weights
    return {}
