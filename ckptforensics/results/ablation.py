"""The result of `ablate`."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Skipped
from ckptforensics.results.running import RunningRecord, TextRecord

Ablated = Literal[
    "none",
    "trigger",
    "massive-zero",
    "massive-mean",
    "super-weight",
    "skip-ffn",
    "skip-block",
    "control",
]


class AblationRow(Frozen):
    """The model with one thing taken away, or with the control of that.

    `detail` says what exactly; `of` is what a control belongs to. `perplexity` is over `tokens`
    predicted tokens; `norms` are the median norms of the windows' first tokens before layer 1 and
    after each layer; `continuation` is what the model goes on with, null without a tokenizer.
    """

    what: Ablated
    layers: tuple[int, ...]
    detail: str
    of: Ablated | None = None
    perplexity: Finite
    tokens: int
    norms: tuple[Finite, ...]
    continuation: str | None = None


class AblationDocument(Document):
    """The result of `ablate`: perplexity and norms before and after each intervention.

    `perplexity` is the exponential of the mean over windows of their mean loss, windows weighing
    equally.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["ablation"] = "ablation"
    model: ModelRecord
    running: RunningRecord
    text: TextRecord
    prompt: str | None
    rows: tuple[AblationRow, ...]
    skipped: tuple[Skipped, ...] = ()
