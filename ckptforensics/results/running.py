"""What the documents of a running model share: on which text, and with what it ran."""

from __future__ import annotations

from ckptforensics.results.records import Frozen, Sha256


class TextRecord(Frozen):
    """The text that a model ran on.

    `source` names it and `sha256` is its text's (null for token ids); it was cut into `windows` of
    `window` tokens, `tokens` together; the text has `available`, and `partial` says that some were
    left out. No special token is added but, with `bos`, the begin-of-sequence token at the head of
    each window, which `window` and `tokens` count and `available` does not.
    """

    source: str
    sha256: Sha256 | None
    window: int
    windows: int
    tokens: int
    available: int
    partial: bool
    bos: bool


class RunningRecord(Frozen):
    """What ran the model: transformers' class, versions, and the type of weights and states."""

    model_class: str
    transformers: str
    torch: str
    device: str
    dtype: str


class TokenText(Frozen):
    """A token and its text, null where there is no tokenizer."""

    token: int
    text: str | None
