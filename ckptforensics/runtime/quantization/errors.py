"""What rounding does to the output of each linear module, on the inputs of the exact model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from ckptforensics.runtime import libraries
from ckptforensics.runtime.model import Runtime, hidden_argument
from ckptforensics.runtime.quantization.linears import Linear
from ckptforensics.runtime.quantization.schemes import Quantized

# Medians over tokens: on windows' first tokens, and on the others; None where there are none.
Errors = tuple[float | None, float | None]


def module_errors(
    runtime: Runtime,
    quantized: Quantized,
    windows: Sequence[Sequence[int]],
    on_window: Callable[[], None] | None = None,
) -> Mapping[str, Errors]:
    """Name of each linear module to the relative errors of its output, |rounded - exact| / |exact|.

    The model runs as it is; what each module reads on the way is rounded beside it.
    """
    torch = libraries.torch()
    smoothing = quantized.scheme.smoothing
    factors = {} if smoothing is None else smoothing.factors
    seen: dict[str, list[Any]] = {}

    def watching(linear: Linear) -> Callable[..., None]:
        factor = factors.get(linear.name)

        def leaving(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            _, x = hidden_argument(args, kwargs)
            tokens = x.reshape(-1, x.shape[-1])
            exact = output.reshape(-1, output.shape[-1]).double()
            made = quantized.product(linear, tokens if factor is None else tokens / factor)
            length = exact.norm(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
            error = (made.double() - exact).norm(dim=-1) / length
            seen.setdefault(linear.name, []).append(error.cpu())

        return leaving

    with ExitStack() as stack:
        for linear in quantized.linears:
            handle = linear.module.register_forward_hook(watching(linear), with_kwargs=True)
            stack.callback(handle.remove)
        for window in windows:
            runtime.forward([window])
            if on_window is not None:
                on_window()
    return {name: _medians(parts) for name, parts in seen.items()}


def _medians(parts: list[Any]) -> Errors:
    torch = libraries.torch()
    first = torch.stack([part[0] for part in parts])
    others = torch.cat([part[1:] for part in parts])
    return _median(first), _median(others)


def _median(values: Any) -> float | None:
    return float(values.quantile(0.5)) if values.numel() else None
