"""The norm of every token after every layer, beside what the weights predict (Fig. 1, 13, 16)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import CkptError, NothingAnalysable
from ckptforensics.findings.model import model_record
from ckptforensics.findings.norms import rollout
from ckptforensics.progress import Progress, running
from ckptforensics.results import Skipped
from ckptforensics.results.trace import TraceDocument
from ckptforensics.runtime.model import Runtime, start
from ckptforensics.runtime.records import running_record, token_texts
from ckptforensics.runtime.texts import SENTENCE, Text, as_text, windows_of
from ckptforensics.runtime.weights import Placement
from ckptforensics.version import __version__


def trace(
    model: Runtime | Checkpoint | str | Path,
    *,
    text: Text | str | None = None,
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> TraceDocument:
    """Run one text through the model and keep the norm of every token after every layer.

    Parameters
    ----------
    model : a running model, an opened checkpoint or what `open_checkpoint` takes
    text : by default the sentence of the paper's figures; one window of it is run
    placement : device and element type, unless the model runs already
    progress : told of each layer

    Raises
    ------
    CkptError
        as `open_checkpoint`, `runtime.model.start` and `runtime.texts.windows_of`.
    """
    runtime = start(model, placement)
    given = as_text(text)
    if not given.given:
        windows, record = windows_of(runtime, replace(given, text=SENTENCE))
        record = record.model_copy(update={"source": "the sentence of the paper's figures"})
    else:
        windows, record = windows_of(runtime, given)
    ids = windows[0]
    record = record.model_copy(
        update={
            "windows": 1,
            "tokens": len(ids),
            "partial": len(ids) - given.bos < record.available,
        }
    )
    norms, branches, skipped = branch_norms(runtime, ids, progress)
    predicted, why = _predicted(runtime, ids[0], progress)
    texts = token_texts(runtime, ids)
    first = norms[0]
    return TraceDocument(
        tool_version=__version__,
        model=model_record(runtime.checkpoint),
        running=running_record(runtime),
        text=record,
        tokens=tuple(texts[token] for token in ids),
        token_ids=tuple(ids),
        norms=_rows(norms),
        attention=None if branches is None else _rows(branches[0]),
        ffn=None if branches is None else _rows(branches[1]),
        predicted=None if predicted is None else tuple(predicted.tolist()),
        prediction_error=None if predicted is None else _error(predicted, first),
        skipped=(*skipped, *why),
    )


def branch_norms(
    runtime: Runtime, ids: list[int], progress: Progress | None = None
) -> tuple[Doubles, tuple[Doubles, Doubles] | None, list[Skipped]]:
    """Norms (tokens, layers + 1), those of both branches (tokens, layers), and what is missing."""
    count = len(runtime.blocks)
    norms = np.empty((len(ids), count + 1))
    parts = np.full((2, len(ids), count), np.nan)
    before: list[Any] = [None]
    between: list[Any] = [None]
    skipped = []
    with running(progress, "layers", count) as step:

        def on_state(layer: int, state: Any) -> None:
            norms[:, layer] = _lengths(state)
            if layer and between[0] is not None:
                parts[1, :, layer - 1] = _lengths(state - between[0])
            before[0], between[0] = state, None
            if layer:
                step(f"layer {layer}")

        def on_middle(layer: int, state: Any) -> None:
            parts[0, :, layer - 1] = _lengths(state - before[0])
            between[0] = state

        try:
            middles = runtime.watching_middles(on_middle)
            with middles, runtime.watching(on_state):
                runtime.forward([ids])
        except NothingAnalysable as problem:
            skipped.append(Skipped(what="attention and FFN apart", reason=problem.message))
            with runtime.watching(on_state):
                runtime.forward([ids])
    known = not np.isnan(parts).any()
    return norms, (parts[0], parts[1]) if known else None, skipped


def _predicted(
    runtime: Runtime, token: int, progress: Progress | None
) -> tuple[Doubles | None, list[Skipped]]:
    """The first token's norms by the weights alone (layers + 1), or why there are none."""
    what = "prediction of the initial token"
    if not runtime.causal:
        reason = "in an encoder every token sees all others: none is initial"
        return None, [Skipped(what=what, reason=reason)]
    try:
        found = rollout(runtime.checkpoint, tokens=[token], progress=progress).document
    except CkptError as problem:
        return None, [Skipped(what=what, reason=problem.message)]
    return np.array([found.embedding_norms[0], *found.norms[0]]), []


def _error(predicted: Doubles, measured: Doubles) -> float:
    """The largest difference relative to the larger of both; a padding token may be all zeros."""
    size = np.maximum(predicted, measured)
    off = np.abs(predicted - measured)
    return float(np.max(np.divide(off, size, out=np.zeros_like(off), where=size > 0)))


def _lengths(state: Any) -> Doubles:
    """Norm of every token of one window, (tokens,)."""
    lengths: Doubles = state[0].double().norm(dim=-1).cpu().numpy()
    return lengths


def _rows(table: Doubles) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in table.tolist())
