"""The result of `toy train` and `toy report`: small networks that were trained here."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from ckptforensics.errors import one_line
from ckptforensics.results.records import Document, Finite, Frozen, Name, Skipped


class ToyPoint(Frozen):
    """A network after `step` steps, `seconds` after the run began.

    `loss` is in nats a token, on sequences that were not trained on. A layer each: `attention` to
    the first token, mean over queries (those of no trigger, in the Bigram-Backcopy task) and heads;
    `logit_gap` the mean of the logit to it less that to the other keys; `value_norm` |W_O v| of it;
    `residual_norm` its norm after the layer, and `others_norm` that of the other tokens (the mean,
    of language models the median); `highest` the largest norm of any token over the median.
    `excess_trigger` and `excess_other` are losses above that of who knows the rule, `sinks` the
    share of heads that attend to the first token by more than .3. What the task does not have is
    null or empty.
    """

    step: int
    seconds: Finite
    loss: Finite
    excess_trigger: Finite | None = None
    excess_other: Finite | None = None
    attention: tuple[Finite, ...]
    logit_gap: tuple[Finite, ...] = ()
    value_norm: tuple[Finite, ...]
    residual_norm: tuple[Finite, ...]
    others_norm: tuple[Finite, ...]
    highest: tuple[Finite, ...] = ()
    sinks: Finite | None = None

    @property
    def peak(self) -> int:
        """The layer after which the first token stands out most, from 0."""
        norms = zip(self.residual_norm, self.others_norm, strict=True)
        gaps = [own - others for own, others in norms]
        return gaps.index(max(gaps))


class ToyAblation(Frozen):
    """The last checkpoint without the branches that `without` names, on the same sequences.

    `layer` 1 counts from 1, null is every layer.
    """

    without: Literal["nothing", "attention", "ffn", "layer"]
    layer: int | None
    loss: Finite
    excess_trigger: Finite
    excess_other: Finite
    residual_norm: tuple[Finite, ...]


class ToyHeadDomain(Frozen):
    """A head on the queries of one domain: triggers, or all others.

    `attention` is what it attends to the first token, `copied` to the token before the query,
    `needed` by how many nats the loss there rises without the head. It is active where that is
    more than the document's `needed_nats`, else dormant.
    """

    attention: Finite
    copied: Finite
    needed: Finite
    state: Literal["active", "dormant"]


class ToyHead(Frozen):
    """A head, on triggers and on the others."""

    layer: int
    head: int
    trigger: ToyHeadDomain
    other: ToyHeadDomain


class ToySample(Frozen):
    """The beginning of a sequence, and who attends to whom in it.

    `attention` is a layer, a head, a query and a key, each from the first on.
    """

    symbols: tuple[str, ...]
    triggers: tuple[bool, ...]
    attention: tuple[tuple[tuple[tuple[Finite, ...], ...], ...], ...]


class ToyPublished(Frozen):
    """A published number beside that of the measured step nearest to it.

    `comparable` is null where the run is that of the publication but for its batch, else what
    differs more than that.
    """

    step: int
    measure: str
    published: Finite
    measured: Finite
    measured_step: int
    comparable: str | None = None


class ToyRun(Frozen):
    """One run: how it was trained, its log, and what its last checkpoint shows.

    `options` are those in which the network differs from the task's own; `start` is the checkpoint
    that the run began from. `threads`, `torch` and `seconds` say what it was trained with.
    """

    path: Name
    task: Literal["bigram-backcopy", "language"]
    text: Name
    start: Name | None = None
    layers: int
    width: int
    parameters: int
    options: tuple[str, ...]
    attention: Literal["softmax", "relu"]
    optimizer: Literal["adamw", "sgd"]
    rate: Finite
    batch: int
    seed: int
    threads: int
    torch: str
    checkpoints: int
    curve: tuple[ToyPoint, ...]
    ablations: tuple[ToyAblation, ...] = ()
    heads: tuple[ToyHead, ...] = ()
    sample: ToySample | None = None
    published: tuple[ToyPublished, ...] = ()

    @property
    def name(self) -> str:
        """The last part of the path, on one line."""
        return one_line(PurePath(self.path).name or self.path)


class ToyDocument(Document):
    """Small networks trained here, and how extreme tokens came into them."""

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["toy"] = "toy"
    runs: tuple[ToyRun, ...]
    needed_nats: Finite
    skipped: tuple[Skipped, ...] = ()
