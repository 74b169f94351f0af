"""What calibration sees: who reads which norm, how large channels get; SmoothQuant's factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ckptforensics.architectures.schema import Role
from ckptforensics.errors import NothingAnalysable
from ckptforensics.runtime import libraries
from ckptforensics.runtime.model import Runtime, hidden_argument
from ckptforensics.runtime.quantization.arithmetic import FLOOR
from ckptforensics.runtime.quantization.linears import Linear

# Logits of a smoothed model may differ from the model's by this part of the largest.
_SAME = 0.02


@dataclass(frozen=True, eq=False)
class Group:
    """A norm, the linear modules that read its output, and the largest |entry| of each channel."""

    layer: int
    norm: Any
    readers: tuple[Linear, ...]
    largest: Any


@dataclass(frozen=True)
class Calibration:
    """What the linear modules read on the calibration text.

    Attributes
    ----------
    groups : norms that linear modules read
    peaks : name of each down projection to the largest |entry| that it reads over the median one
    """

    groups: tuple[Group, ...]
    peaks: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Smoothing:
    """SmoothQuant's factors.

    Attributes
    ----------
    alpha : how much of the activations' range goes into the weights
    norms : each norm, and what its output is divided by
    factors : name of each module to what its inputs' columns are multiplied with
    """

    alpha: float
    norms: tuple[tuple[Any, Any], ...]
    factors: Mapping[str, Any]

    @contextmanager
    def folded(self) -> Iterator[None]:
        """The norms give what is divided by the factors."""
        with ExitStack() as stack:
            for norm, factor in self.norms:
                stack.callback(norm.register_forward_hook(_dividing(factor)).remove)
            yield


def _dividing(factor: Any) -> Callable[..., Any]:
    def leaving(module: Any, args: Any, output: Any) -> Any:
        return output / factor

    return leaving


def calibrate(
    runtime: Runtime,
    linears: Sequence[Linear],
    windows: Sequence[Sequence[int]],
    on_window: Callable[[], None] | None = None,
) -> Calibration:
    """Run the calibration text once, a window at a time."""
    norms: dict[int, tuple[int, Any]] = {}
    roles: tuple[Role, ...] = ("attention_norm", "ffn_norm")
    for layer in range(1, len(runtime.blocks) + 1):
        for role in roles:
            module = runtime.module(layer, role)
            if module is not None:
                norms.setdefault(id(module), (layer, module))
    seen = _Seen()
    with ExitStack() as stack:
        for key, (_, norm) in norms.items():
            stack.callback(norm.register_forward_hook(seen.leaving(key)).remove)
        for linear in linears:
            handle = linear.module.register_forward_pre_hook(
                seen.entering(linear), with_kwargs=True
            )
            stack.callback(handle.remove)
        for window in windows:
            runtime.forward([window])
            seen.outputs.clear()
            if on_window is not None:
                on_window()
    groups = tuple(
        Group(layer, norm, tuple(seen.readers[key].values()), seen.largest[key])
        for key, (layer, norm) in norms.items()
        if key in seen.readers
    )
    peaks = {
        name: max(most for most, _ in pairs) / max(_middle([m for _, m in pairs]), FLOOR)
        for name, pairs in seen.down.items()
    }
    return Calibration(groups, peaks)


class _Seen:
    """What passes norms and linear modules while windows run."""

    def __init__(self) -> None:
        self.outputs: dict[int, Any] = {}
        self.readers: dict[int, dict[str, Linear]] = {}
        self.largest: dict[int, Any] = {}
        self.down: dict[str, list[tuple[float, float]]] = {}

    def leaving(self, key: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            self.outputs[key] = output  # held, so that its memory is no other tensor's
            sizes = output.reshape(-1, output.shape[-1]).abs().amax(dim=0)
            known = self.largest.get(key)
            self.largest[key] = sizes if known is None else known.maximum(sizes)

        return hook

    def entering(self, linear: Linear) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            _, x = hidden_argument(args, kwargs)
            if linear.down:
                sizes = x.abs()
                pair = (float(sizes.max()), float(sizes.float().median()))
                self.down.setdefault(linear.name, []).append(pair)
            for key, output in self.outputs.items():
                if x.data_ptr() == output.data_ptr() and x.numel() == output.numel():
                    self.readers.setdefault(key, {})[linear.name] = linear

        return hook


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def smooth(calibration: Calibration, alpha: float) -> Smoothing:
    """s_j = act_j^alpha / w_j^(1 - alpha), w_j the largest |entry| of column j of all siblings."""
    torch = libraries.torch()
    norms, factors = [], {}
    with torch.no_grad():
        for group in calibration.groups:
            columns = torch.stack([r.matrix.abs().amax(dim=0) for r in group.readers])
            weights = columns.amax(dim=0).clamp(min=FLOOR)
            factor = (group.largest.pow(alpha) / weights.pow(1 - alpha)).clamp(min=FLOOR)
            norms.append((group.norm, factor))
            factors.update(dict.fromkeys((reader.name for reader in group.readers), factor))
    return Smoothing(alpha, tuple(norms), factors)


def require_smoothable(runtime: Runtime, calibration: Calibration, window: Sequence[int]) -> None:
    """NothingAnalysable, with the reason, if factors cannot be folded into the norms' outputs."""
    with_norm = {group.layer for group in calibration.groups}
    for layer in range(1, len(runtime.blocks) + 1):
        if layer not in with_norm:
            raise NothingAnalysable(
                f"not applicable: no linear module of layer {layer} reads a norm's output, into "
                "which SmoothQuant would fold its factors"
            )
    smoothing = smooth(calibration, 0.5)
    exact = runtime.forward([window], logits=True).logits
    with ExitStack() as stack:
        stack.enter_context(smoothing.folded())
        for group in calibration.groups:
            for reader in group.readers:
                stack.enter_context(reader.holding(reader.matrix * smoothing.factors[reader.name]))
        changed = runtime.forward([window], logits=True).logits
    if not bool((changed - exact).abs().max() <= _SAME * exact.abs().max()):
        raise NothingAnalysable(
            "not applicable: more than linear modules reads the norms' outputs, so that "
            "SmoothQuant's factors would change the model"
        )
