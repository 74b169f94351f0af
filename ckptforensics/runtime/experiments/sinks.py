"""Attention sinks: heads that attend to the first token, and what it gives them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import NothingAnalysable, UsageError
from ckptforensics.findings.model import model_record
from ckptforensics.forward import apply_norm, branch_result
from ckptforensics.layers import load_block
from ckptforensics.progress import Progress, running
from ckptforensics.results import Skipped
from ckptforensics.results.running import TextRecord
from ckptforensics.results.sinks import SinkLayer, SinksDocument, SwitchingHead
from ckptforensics.runtime.model import Runtime, start
from ckptforensics.runtime.records import running_record
from ckptforensics.runtime.texts import Text, as_text, windows_of
from ckptforensics.runtime.weights import Placement
from ckptforensics.version import __version__

# As in the Attention-Sink repository: windows of 64 tokens, a mean over .3.
WINDOW, THRESHOLD = 64, 0.3
# transformers' implementation that returns the weights.
ATTENTION = "eager"
# Tokens that run together; a layer's weights are read once for them.
_TOKENS_AT_ONCE = 4096
_SWITCHING = 20


class _Sums:
    """What is summed over windows: counts of sinks a head, and norms of first tokens and others."""

    def __init__(self, layers: int) -> None:
        self.windows = 0
        self.sinks: list[Doubles | None] = [None] * layers
        self.values: list[Doubles | None] = [np.zeros(2) for _ in range(layers)]
        self.residuals = np.zeros((layers, 2))


def sinks(
    model: Runtime | Checkpoint | str | Path,
    *,
    text: Text | str | None = None,
    other: Text | str | None = None,
    k: int = 1,
    threshold: float = THRESHOLD,
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> SinksDocument:
    """Share of heads with a sink, drain of values and peak of the residual stream, layer by layer.

    Parameters
    ----------
    model : a running model, an opened checkpoint or what `open_checkpoint` takes
    text, other : by default Python's help topics in windows of 64 tokens; a second text of another
        domain shows which heads are active on one of them only
    k : token that is the sink, from 1
    threshold : of the mean attention to it
    placement : device and element type, unless the model runs already
    progress : told of each layer

    Raises
    ------
    NothingAnalysable
        if the model's modules return no attention weights.
    CkptError
        as `open_checkpoint`, `runtime.model.start` and `runtime.texts.windows_of`.
    """
    runtime = start(model, placement, ATTENTION)
    found: dict[str, Any] = {}
    with _returning_weights(runtime):
        record, layers, skipped = _measured(runtime, text, k, threshold, progress)
        if other is not None:
            other_record, other_layers, _ = _measured(runtime, other, k, threshold, progress)
    if other is not None:
        found = {
            "other": other_record,
            "other_share": _share(other_layers),
            "other_layers": other_layers,
            "switching": _switching(layers, other_layers),
        }
    return SinksDocument(
        tool_version=__version__,
        model=model_record(runtime.checkpoint),
        running=running_record(runtime),
        text=record,
        k=k,
        threshold=threshold,
        share=_share(layers),
        layers=layers,
        skipped=skipped,
        **found,
    )


def _measured(
    runtime: Runtime,
    text: Text | str | None,
    k: int,
    threshold: float,
    progress: Progress | None,
) -> tuple[TextRecord, tuple[SinkLayer, ...], tuple[Skipped, ...]]:
    windows, record = windows_of(runtime, as_text(text, WINDOW))
    if not 1 <= k < len(windows[0]):
        raise UsageError(
            f"in a window of {len(windows[0])} tokens none is behind token {k}",
            hint="change --k or --window, or give more text",
        )
    count = len(runtime.blocks)
    sums = _Sums(count)
    at_once = max(1, _TOKENS_AT_ONCE // len(windows[0]))
    batches = [windows[i : i + at_once] for i in range(0, len(windows), at_once)]
    with running(progress, "layers", count * len(batches)) as step:
        for batch in batches:

            def on_state(layer: int, state: Any) -> None:
                if layer < count:
                    _add_norms(runtime, sums, layer + 1, state, k)
                if layer:
                    step(f"layer {layer}")

            def on_weights(layer: int, weights: Any) -> None:
                # Mean over queries k to T of the attention to token k, (windows, heads).
                mean = weights[:, :, k - 1 :, k - 1].float().mean(dim=2)
                found = (mean > threshold).double().sum(dim=0).cpu().numpy()
                before = sums.sinks[layer - 1]
                sums.sinks[layer - 1] = found if before is None else before + found

            with runtime.watching(on_state), _watching_weights(runtime, on_weights):
                runtime.forward(batch)
            sums.windows += len(batch)
    return record, _layers(runtime, sums), _skipped(sums)


@contextmanager
def _returning_weights(runtime: Runtime) -> Iterator[None]:
    """Let a model that runs use the attention that returns its weights, and then its own again."""
    own = runtime.model.config._attn_implementation
    if own == ATTENTION:
        yield
        return
    runtime.model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        runtime.model.set_attn_implementation(own)


@contextmanager
def _watching_weights(runtime: Runtime, on_weights: Any) -> Iterator[None]:
    """Call `on_weights` with the attention weights (batch, heads, T, T) of each layer, once."""
    with ExitStack() as stack:
        for layer, block in enumerate(runtime.blocks, 1):
            seen: dict[str, bool] = {}

            def leaving(
                module: Any, args: Any, output: Any, layer: int = layer, seen: Any = seen
            ) -> None:
                weights: Any = output[1] if isinstance(output, tuple) and len(output) > 1 else 0
                square = getattr(weights, "ndim", 0) == 4 and weights.shape[2] == weights.shape[3]
                if square and not seen:
                    seen["done"] = True
                    on_weights(layer, weights)

            for module in block.modules():
                if module is not block:
                    stack.callback(module.register_forward_hook(leaving).remove)
        yield


def _add_norms(runtime: Runtime, sums: _Sums, layer: int, state: Any, k: int) -> None:
    """Of the residual stream before a layer, and of what its attention makes of each token."""
    x = state.float().cpu().numpy()
    sums.residuals[layer - 1] += _first_and_others(np.linalg.norm(x, axis=2), k)
    values = sums.values[layer - 1]
    if values is None:
        return
    try:
        attention = load_block(runtime.checkpoint, layer).attention
    except NothingAnalysable:
        attention = None
    if attention is None:
        sums.values[layer - 1] = None
        return
    rows = x.reshape(-1, x.shape[2])
    added = branch_result(attention, apply_norm(rows, attention.norm))
    values += _first_and_others(np.linalg.norm(added, axis=1).reshape(x.shape[:2]), k)


def _first_and_others(norms: Any, k: int) -> Doubles:
    """Sums over windows of the sink's norm and the mean of the others', (2,)."""
    others = np.delete(norms, k - 1, axis=1)
    rest = others.mean(axis=1).sum() if others.size else 0.0
    return np.array([norms[:, k - 1].sum(), rest], np.float64)


def _layers(runtime: Runtime, sums: _Sums) -> tuple[SinkLayer, ...]:
    found = []
    for layer, (counts, values) in enumerate(zip(sums.sinks, sums.values, strict=True), 1):
        if counts is None:
            continue
        heads = counts / sums.windows
        residual = sums.residuals[layer - 1] / sums.windows
        found.append(
            SinkLayer(
                layer=layer,
                share=float(heads.mean()),
                heads=tuple(heads.tolist()),
                value_norm=None if values is None else _pair(values / sums.windows),
                residual_norm=_pair(residual),
            )
        )
    if not found:
        raise NothingAnalysable(
            f"the modules of {type(runtime.model).__name__} return no attention weights",
            path=runtime.checkpoint.source.path,
        )
    return tuple(found)


def _skipped(sums: _Sums) -> tuple[Skipped, ...]:
    silent = [str(i) for i, counts in enumerate(sums.sinks, 1) if counts is None]
    if not silent:
        return ()
    reason = "its modules return no attention weights"
    return (
        Skipped(what=f"layer{'s' if len(silent) > 1 else ''} {', '.join(silent)}", reason=reason),
    )


def _share(layers: tuple[SinkLayer, ...]) -> float:
    return float(np.concatenate([np.array(layer.heads) for layer in layers]).mean())


def _switching(
    layers: tuple[SinkLayer, ...], others: tuple[SinkLayer, ...]
) -> tuple[SwitchingHead, ...]:
    """The heads whose shares differ most between the texts."""
    rows = [
        SwitchingHead(layer=one.layer, head=head, shares=shares)
        for one, two in zip(layers, others, strict=True)
        for head, shares in enumerate(zip(one.heads, two.heads, strict=True))
        if shares[0] != shares[1]
    ]
    rows.sort(key=lambda row: -abs(row.shares[0] - row.shares[1]))
    return tuple(rows[:_SWITCHING])


def _pair(values: Doubles) -> tuple[float, float]:
    return float(values[0]), float(values[1])
