"""A way to round the linear modules of a model, and the model running in that way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from ckptforensics.runtime import libraries
from ckptforensics.runtime.model import hidden_argument, with_first
from ckptforensics.runtime.quantization.arithmetic import (
    GROUP,
    integer_product,
    rounded,
    rounded_in_groups,
    row_step,
    tensor_step,
)
from ckptforensics.runtime.quantization.calibration import Smoothing
from ckptforensics.runtime.quantization.linears import Linear

# Bytes of a value in 16 bits, of a step, and of a super weight's two numbers of place.
_BYTES_16, _BYTES_STEP, _BYTES_PLACE = 2, 2, 4


@dataclass(frozen=True)
class Scheme:
    """How weights and activations are rounded.

    Attributes
    ----------
    weights : one step a tensor or an output channel, in 8 bits, or a group of 128 inputs, in 4
    activations : one step for all tokens of a window or a token each, in 8 bits; None: 16 bits
    smoothing : SmoothQuant's factors, folded into the norms
    first_apart : the first token of a window passes in 16 bits and has no part in the steps, as a
        prefix in a 16-bit KV cache does
    held : name of a module to (row, column) of weights that are kept out of their groups
    integer : multiply 8-bit codes, in place of rounded numbers
    """

    weights: Literal["tensor", "channel", "group"] = "tensor"
    activations: Literal["tensor", "token"] | None = "tensor"
    smoothing: Smoothing | None = None
    first_apart: bool = False
    held: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    integer: bool = False

    def bytes_of(self, linear: Linear, *, kept: bool) -> int:
        """What a module's weights and steps take; its bias is no part of them."""
        rows, columns = linear.matrix.shape
        if kept:
            return _BYTES_16 * linear.size
        if self.weights == "group":
            held = len(self.held.get(linear.name, ())) * (_BYTES_16 + _BYTES_PLACE)
            return -(-linear.size // 2) + _BYTES_STEP * rows * -(-columns // GROUP) + held
        return linear.size + _BYTES_STEP * (rows if self.weights == "channel" else 1)


class Quantized:
    """The linear modules of a model, those that are not kept rounded.

    Parameters
    ----------
    linears : all of them
    kept : names of those whose weights and activations stay in 16 bits
    """

    def __init__(self, scheme: Scheme, linears: Sequence[Linear], kept: Sequence[str] = ()) -> None:
        self.scheme, self.linears, self.kept = scheme, linears, frozenset(kept)
        # What was rounded last: siblings read one tensor.
        self._last: tuple[Any, Any] = (None, None)
        with libraries.torch().no_grad():
            self.matrices = {linear.name: self._matrix(linear) for linear in linears}

    def _exact(self, linear: Linear) -> Any:
        smoothing = self.scheme.smoothing
        factors = None if smoothing is None else smoothing.factors.get(linear.name)
        return linear.matrix if factors is None else linear.matrix * factors

    def _matrix(self, linear: Linear) -> Any:
        matrix = self._exact(linear)
        if linear.name in self.kept:
            return matrix
        if self.scheme.weights == "tensor":
            return rounded(matrix, tensor_step(matrix))
        if self.scheme.weights == "channel":
            return rounded(matrix, row_step(matrix))
        places = self.scheme.held.get(linear.name, ())
        matrix = matrix.clone()
        values = [(row, column, matrix[row, column].clone()) for row, column in places]
        for row, column, _ in values:
            matrix[row, column] = 0
        matrix = rounded_in_groups(matrix)
        for row, column, value in values:
            matrix[row, column] = value
        return matrix

    def _step(self, tokens: Any) -> Any:
        own = tokens[1:] if self.scheme.first_apart else tokens
        return tensor_step(own) if self.scheme.activations == "tensor" else row_step(tokens)

    def entering(self, x: Any) -> Any:
        """What a module that is not kept reads in place of x, whose last axis are channels."""
        if self.scheme.activations is None:
            return x
        if self._last[0] is not x:
            tokens = x.reshape(-1, x.shape[-1])
            changed = rounded(tokens, self._step(tokens))
            if self.scheme.first_apart:
                changed[0] = tokens[0]
            self._last = (x, changed.view(x.shape))
        return self._last[1]

    def product(self, linear: Linear, x: Any) -> Any:
        """What a module makes of (tokens, in) rows, already divided by the smoothing factors."""
        if linear.name in self.kept:
            return linear.apply(self.matrices[linear.name], x)
        made = linear.apply(self.matrices[linear.name], self.entering(x))
        if self.scheme.first_apart:
            made[0] = linear.apply(self._exact(linear), x[0])
        return made

    def _integer(self, linear: Linear, matrix: Any, x: Any) -> Any:
        """As `product`, of the matrix before it is rounded."""
        step = tensor_step(matrix) if self.scheme.weights == "tensor" else row_step(matrix)
        made = integer_product(x, self._step(x), matrix, step)
        return made if linear.module.bias is None else made + linear.module.bias

    @contextmanager
    def running(self) -> Iterator[None]:
        """The model computes with what is rounded; behind it it is as before, bit by bit.

        One window may run at a time: a step is of one window, as in published code.
        """
        smoothing = self.scheme.smoothing
        with ExitStack() as stack:
            if smoothing is not None:
                stack.enter_context(smoothing.folded())
            for linear in self.linears:
                if linear.name not in self.kept:
                    for handle in self._hooks(linear):
                        stack.callback(handle.remove)
                stack.enter_context(linear.holding(self.matrices[linear.name]))
            try:
                yield
            finally:
                self._last = (None, None)

    def _hooks(self, linear: Linear) -> Iterator[Any]:
        module, scheme = linear.module, self.scheme
        seen: dict[str, Any] = {}

        def entering(module: Any, args: Any, kwargs: Any) -> Any:
            name, x = hidden_argument(args, kwargs)
            seen["x"] = x
            changed = self.entering(x)
            if name is None:
                return (changed, *args[1:]), kwargs
            return args, {**kwargs, name: changed}

        def leaving(module: Any, args: Any, output: Any) -> Any:
            x = seen.pop("x")
            tokens = x.reshape(-1, x.shape[-1])
            made = output
            if scheme.integer:
                made = self._integer(linear, exact, tokens).view(output.shape)
            if scheme.first_apart:
                made.view(-1, made.shape[-1])[0] = linear.apply(exact, tokens[0])
            return with_first(output, made)

        if scheme.activations is not None:
            yield module.register_forward_pre_hook(entering, with_kwargs=True)
        if scheme.integer or scheme.first_apart:
            exact = self._exact(linear)  # read before the module holds another
            yield module.register_forward_hook(leaving)
