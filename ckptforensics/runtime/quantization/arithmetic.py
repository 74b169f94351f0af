"""Rounding to whole multiples of a step, as smoothquant's published code does it, in torch.

Symmetric: a step is the largest |entry|, at least `FLOOR`, over the largest code; halves go to the
even neighbour. Every function works in the element type that it is given.
"""

from __future__ import annotations

from typing import Any

from ckptforensics.errors import UsageError
from ckptforensics.runtime import libraries

FLOOR = 1e-5
# Largest code in 8 bits; 4 bits have codes from -8 to 7 and a step that divides their middle.
CODE_8, HALF_RANGE_4 = 127, 7.5
GROUP = 128


def tensor_step(x: Any, code: float = CODE_8) -> Any:
    """One step for the whole tensor, without dimensions."""
    low, high = libraries.torch().aminmax(x)
    return high.maximum(-low).clamp(min=FLOOR) / code


def row_step(x: Any, code: float = CODE_8) -> Any:
    """A step for each row, (..., 1): of an (out, in) weight's channels, or of tokens."""
    return x.abs().amax(dim=-1, keepdim=True).clamp(min=FLOOR) / code


def rounded(x: Any, step: Any) -> Any:
    """The nearest whole multiples of the step."""
    return (x / step).round_().mul_(step)


def rounded_in_groups(weight: Any) -> Any:
    """An (out, in) weight in 4 bits, each row in groups of 128 columns, the last one shorter.

    As compressed-tensors' symmetric int4, and `quantization.rounding`'s `int4-g128`: a step is the
    largest |entry| over 7.5, codes -8 to 7.
    """
    made = []
    for part in weight.split(GROUP, dim=1):
        step = row_step(part, HALF_RANGE_4)
        made.append((part / step).round_().clamp_(-8, 7).mul_(step))
    return libraries.torch().cat(made, dim=1)


def integer_product(x: Any, x_step: Any, weight: Any, weight_step: Any) -> Any:
    """(tokens, in) times the transposed (out, in), in int8 codes added up in int32.

    Parameters
    ----------
    x_step : without dimensions, or (tokens, 1)
    weight_step : without dimensions, or (out, 1)

    Raises
    ------
    UsageError
        if this torch, or the device, has no product of these shapes.
    """
    torch = libraries.torch()
    codes = [(a / s).round_().to(torch.int8) for a, s in ((x, x_step), (weight, weight_step))]
    try:
        sums = torch._int_mm(codes[0], codes[1].t().contiguous())
    except (AttributeError, RuntimeError) as problem:
        raise UsageError(
            f"torch cannot multiply 8-bit codes here: {str(problem).splitlines()[0]}",
            hint="leave --integer out",
        ) from None
    exact = sums.to(torch.promote_types(x.dtype, torch.float32))
    return (exact * x_step * weight_step.reshape(1, -1)).to(x.dtype)
