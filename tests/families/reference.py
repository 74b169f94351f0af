"""L of a block from its transformers modules alone: Jacobian of attention, least squares of FFN.

Knows neither tensor names nor our code: it calls a block's norms, attention and FFN as the model
does, and looks at what they do to vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.families.harness import Case

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
FFN = ("mlp", "shared_mlp", "ffn", "feed_forward")
ATTENTION_NORMS = ("input_layernorm", "self_attn_layer_norm", "ln_1", "ln_attn", "norm_1")
# A block without a norm of its own for the FFN is parallel and shares the other.
FFN_NORMS = (
    "pre_ff_layernorm",
    "pre_feedforward_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "final_layer_norm",
    "ln_2",
    "ln_mlp",
    "norm_2",
    *ATTENTION_NORMS,
)
Rows = torch.Tensor


@dataclass(frozen=True)
class Affine:
    """A norm on normalised vectors z: gain z + bias.

    Attributes
    ----------
    gain, bias : (hidden_size,)
    centred : the norm takes the mean away
    """

    gain: Rows
    bias: Rows
    centred: bool

    def matrix(self) -> Rows:
        """diag(gain), times I - 11'/d where the norm centres."""
        d = len(self.gain)
        centre = torch.eye(d, dtype=torch.float64)
        return self.gain[:, None] * (centre - 1 / d if self.centred else centre)


class BlockReference:
    """The linear part of a model's first block, from what its modules return."""

    def __init__(self, model: nn.Module, case: Case) -> None:
        block = attrgetter(case.blocks)(model)[0]
        attention, ffn = _first(block, ATTENTION), _first(block, FFN) or _two_maps(block)
        norms = _first(block, ATTENTION_NORMS), _first(block, FFN_NORMS)
        assert attention is not None
        assert ffn is not None
        assert norms[0] is not None
        assert norms[1] is not None
        config = model.config.get_text_config()
        self.scale = getattr(config, "residual_multiplier", 1.0)
        self.width = config.hidden_size
        calls = [attention, *([ffn] if isinstance(ffn, nn.Module) else [])]
        self.calls = _arguments(model, calls, case)
        self.attention, self.ffn = attention, ffn
        self.attention_norm, self.ffn_norm = (_affine(n, self.width) for n in norms)

    def attention_map(self) -> np.ndarray:
        """A: the Jacobian of attention for one token at position 0, times the norm's linear part.

        Taken at a small vector, where no bound on the values acts.
        """
        n = 1e-3 * torch.randn(1, 1, self.width, generator=torch.Generator().manual_seed(5))

        def attend(n: Rows) -> Rows:
            return self._call(self.attention, n).reshape(-1)

        jacobian = torch.autograd.functional.jacobian(attend, n).reshape(self.width, self.width)
        matrix = jacobian.double() @ self.attention_norm.matrix()
        return (self.scale * matrix).numpy()

    def ffn_map(self, count: int, before: np.ndarray | None) -> tuple[np.ndarray, float]:
        """F by least squares on Gaussian vectors, and the Frobenius norm of its error to expect.

        With residuals r of the fit, F - E[Jacobian] is the mean of r z' over `count` vectors, each
        term of which has mean 0.

        Parameters
        ----------
        count : number of vectors
        before : matrix that F is multiplied with from the right in the expected error; None for
            the identity
        """
        z = torch.randn(count, self.width, generator=torch.Generator().manual_seed(count))
        if self.ffn_norm.centred:
            z -= z.mean(dim=1, keepdim=True)
        with torch.no_grad():
            n = z * self.ffn_norm.gain.float() + self.ffn_norm.bias.float()
            y = self.scale * self._call(self.ffn, n[:, None, :]).reshape(count, -1)
        z, y = (z - z.mean(dim=0)).double(), (y - y.mean(dim=0)).double()
        fitted = torch.linalg.pinv(z.T @ z, rtol=1e-10, hermitian=True) @ (z.T @ y)
        rest = y - z @ fitted
        seen = z if before is None else z @ torch.from_numpy(before).double()
        squares = rest.square().sum(dim=1) * seen.square().sum(dim=1)
        return fitted.T.numpy(), float(squares.mean().div(count).sqrt())

    def _call(self, module: Callable[..., Any], n: Rows) -> Rows:
        """The module as the model called it, on other vectors."""
        args, kwargs = self.calls.get(module, ((None,), {}))
        if args:
            output = module(n, *args[1:], **kwargs)
        else:
            output = module(**kwargs | {"hidden_states": n})
        result: Rows = output[0] if isinstance(output, tuple) else output
        return result


def _first(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((m for m in (getattr(block, name, None) for name in names) if m is not None), None)


def _two_maps(block: Any) -> Callable[[Rows], Rows] | None:
    """OPT's FFN, which is not a module."""
    if not hasattr(block, "fc1"):
        return None
    return lambda n: block.fc2(block.activation_fn(block.fc1(n)))


def _arguments(model: nn.Module, modules: list[nn.Module], case: Case) -> dict[Any, Any]:
    """Arguments with which the model calls some of its modules for one token at position 0."""
    found: dict[Any, Any] = {}

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        found[module] = args, kwargs

    hooks = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in modules]
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([[7]]), use_cache=False, **case.extra_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _affine(norm: nn.Module, width: int) -> Affine:
    """Gain and bias from a norm's values at vectors of mean 0, so large that eps is nothing."""
    signs = torch.ones(width, dtype=torch.float64)
    signs[::2] = -1
    double = norm.double()
    with torch.no_grad():
        plus, minus, moved = (double(v * 1e4) for v in (signs, -signs, signs + 1))
    norm.float()
    bias = (plus + minus) / 2
    centred = torch.allclose(moved, plus, rtol=1e-5, atol=1e-6)
    return Affine((plus - bias) / signs, bias, centred)
