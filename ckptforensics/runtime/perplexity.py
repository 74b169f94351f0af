"""Perplexity over windows of text, as published code computes it, in one pass that is watched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ckptforensics.errors import NothingAnalysable, UsageError
from ckptforensics.runtime import libraries
from ckptforensics.runtime.model import Runtime

# Windows that run together have at most so many tokens.
_TOKENS_AT_ONCE = 1024


def perplexity(
    runtime: Runtime,
    windows: Sequence[Sequence[int]],
    on_batch: Callable[[int], None] | None = None,
    *,
    at_once: int | None = None,
) -> tuple[float, int]:
    """exp of the mean over windows of their mean loss, windows weighing equally.

    Parameters
    ----------
    windows : of equal length, at least two tokens; each predicts all of its tokens but the first
    on_batch : told of the number of windows that are done
    at_once : windows that run together, by default as many as are short

    Returns
    -------
    the perplexity, and the number of predicted tokens

    Raises
    ------
    NothingAnalysable
        if the model has no head over the vocabulary.
    UsageError
        if a window has one token only.
    """
    torch = libraries.torch()
    length = len(windows[0])
    if length < 2:
        raise UsageError("perplexity needs windows of two tokens or more", hint="give more text")
    if runtime.model.get_output_embeddings() is None:
        raise NothingAnalysable(
            f"{type(runtime.model).__name__} has no head over the vocabulary: it predicts nothing",
            path=runtime.checkpoint.source.path,
        )
    at_once = at_once or max(1, _TOKENS_AT_ONCE // length)
    losses: list[float] = []
    for i in range(0, len(windows), at_once):
        batch = [list(window) for window in windows[i : i + at_once]]
        with torch.inference_mode():
            logits = runtime.forward(batch, logits=True).logits[:, :-1].float()
            wanted = torch.tensor(batch, device=logits.device)[:, 1:]
            loss = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), wanted, reduction="none"
            )
        losses += loss.double().mean(dim=1).tolist()
        if on_batch is not None:
            on_batch(len(losses))
    mean = sum(losses) / len(losses)
    if not math.isfinite(mean) or mean > 700:
        raise NothingAnalysable(
            f"the model's loss is {mean:.3g}: its logits are not numbers, or near infinity",
            path=runtime.checkpoint.source.path,
        )
    return math.exp(mean), (length - 1) * len(windows)
