"""The result of `trace`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ckptforensics.results.records import Document, Finite, ModelRecord, Skipped
from ckptforensics.results.running import RunningRecord, TextRecord

Rows = tuple[tuple[Finite, ...], ...]


class TraceDocument(Document):
    """The result of `trace`: the norm of every token of one text after every layer.

    `norms` has for each token its norm before layer 1 and after each layer; `attention` and `ffn`
    those of what the two branches of each layer add, null where the family's data do not say where
    one ends. `predicted` is the path of the first token by the weights alone, and
    `prediction_error` the largest relative difference from the running model; both are null where
    no token is initial (encoders) or the weights do not tell (`skipped` says why).
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["trace"] = "trace"
    model: ModelRecord
    running: RunningRecord
    text: TextRecord
    tokens: tuple[str | None, ...]
    token_ids: tuple[int, ...]
    norms: Rows
    attention: Rows | None
    ffn: Rows | None
    predicted: tuple[Finite, ...] | None
    prediction_error: Finite | None
    skipped: tuple[Skipped, ...] = ()

    @model_validator(mode="after")
    def _one_row_a_token(self) -> TraceDocument:
        count, layers = len(self.token_ids), self.model.num_layers
        if not count or len(self.tokens) != count:
            raise ValueError("tokens and token_ids must have one entry a token")
        tables = [(self.norms, layers + 1), (self.attention, layers), (self.ffn, layers)]
        for table, width in tables:
            if table is not None and (
                len(table) != count or any(len(row) != width for row in table)
            ):
                raise ValueError("norms, attention and ffn must have a row a token")
        if self.predicted is not None and len(self.predicted) != layers + 1:
            raise ValueError("predicted must have one entry a layer, and one before")
        return self
