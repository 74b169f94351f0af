"""The result of `sinks`."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Skipped
from ckptforensics.results.running import RunningRecord, TextRecord


class SinkLayer(Frozen):
    """Attention sinks of one layer.

    `share` is the share of heads, over all windows, whose mean attention to the first token is over
    the threshold; `heads` the same of each head; `value_norm` the norm of what the first token and
    the others (in the mean) put into the stream when attention reads them, W_O W_V norm(x), null
    where the layer's attention is not analysed; `residual_norm` that of the residual stream before
    the layer.
    """

    layer: int
    share: Finite
    heads: tuple[Finite, ...]
    value_norm: tuple[Finite, Finite] | None
    residual_norm: tuple[Finite, Finite]


class SwitchingHead(Frozen):
    """A head whose share of windows with a sink differs between two texts: active on one only."""

    layer: int
    head: int
    shares: tuple[Finite, Finite]


class SinksDocument(Document):
    """The result of `sinks`: heads that attend to the first token, and what it gives them.

    `share` is over all windows, layers and heads, at token `k`, counted from 1; a head has a sink
    in a window where the mean of its attention to token k, over queries k to T, exceeds
    `threshold`. With a second text (`other`) `other_layers` are its layers and `switching` the
    heads that differ most between the two.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["sinks"] = "sinks"
    model: ModelRecord
    running: RunningRecord
    text: TextRecord
    k: int
    threshold: Finite
    share: Finite
    layers: tuple[SinkLayer, ...]
    other: TextRecord | None = None
    other_share: Finite | None = None
    other_layers: tuple[SinkLayer, ...] = ()
    switching: tuple[SwitchingHead, ...] = ()
    skipped: tuple[Skipped, ...] = ()
