"""Rounding to whole multiples of a step, as smoothquant's published code does it, in torch.

Symmetric: a step is the largest |entry|, at least `FLOOR`, over the largest code; halves go to the
even neighbour. Every function works in the element type that it is given.
"""

from __future__ import annotations

from typing import Any

from ckptforensics.runtime import libraries

FLOOR = 1e-5
CODE_8, CODE_4 = 127, 7
GROUP = 128


def tensor_step(x: Any, code: int = CODE_8) -> Any:
    """One step for the whole tensor, without dimensions."""
    low, high = libraries.torch().aminmax(x)
    return high.maximum(-low).clamp(min=FLOOR) / code


def row_step(x: Any, code: int = CODE_8) -> Any:
    """A step for each row, (..., 1): of an (out, in) weight's channels, or of tokens."""
    return x.abs().amax(dim=-1, keepdim=True).clamp(min=FLOOR) / code


def rounded(x: Any, step: Any) -> Any:
    """The nearest whole multiples of the step."""
    return (x / step).round_().mul_(step)


def rounded_in_groups(weight: Any, code: int = CODE_4, group: int = GROUP) -> Any:
    """An (out, in) weight, each row in groups of columns with a step each, the last one shorter."""
    torch = libraries.torch()
    parts = weight.split(group, dim=1)
    return torch.cat([rounded(part, row_step(part, code)) for part in parts], dim=1)


def integer_product(x: Any, x_step: Any, weight: Any, weight_step: Any) -> Any:
    """(tokens, in) times the transposed (out, in), in int8 codes added up in int32.

    Parameters
    ----------
    x_step : without dimensions, or (tokens, 1)
    weight_step : without dimensions, or (out, 1)
    """
    torch = libraries.torch()
    codes = [(a / s).round_().to(torch.int8) for a, s in ((x, x_step), (weight, weight_step))]
    sums = torch._int_mm(codes[0], codes[1].t().contiguous())
    return sums.to(x.dtype) * x_step * weight_step.reshape(1, -1)
