"""The result of `paths`."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Skipped
from ckptforensics.results.running import TokenText


class TokenNorm(Frozen):
    """A token and the largest norm on its path, after layer `layer`."""

    token: int | None
    text: str | None
    layer: int
    norm: Finite


class PathRecord(Frozen):
    """Norms of many single tokens after each layer (and before layer 1, first).

    `minimum`, `median` and `maximum` are over the `count` tokens; `highest` are the tokens whose
    path goes highest.
    """

    count: int
    minimum: tuple[Finite, ...]
    median: tuple[Finite, ...]
    maximum: tuple[Finite, ...]
    highest: tuple[TokenNorm, ...] = ()


class AnswerRecord(Frozen):
    """What a layer's true FFN returns for the leading right singular vectors of its linear map.

    `sigma` are the singular values, `norms` the norms of the FFN's outputs at plus and minus each
    vector, whichever is larger.
    """

    layer: int
    sigma: tuple[Finite, ...]
    norms: tuple[Finite, ...]


class CoefficientRecord(Frozen):
    """Trigger coefficients of tokens at one position: v1 times the normed input of the FFN.

    The input has root mean square 1, and v1 that sign for which the coefficients of initial tokens
    are positive. `highest` and `lowest` are tokens with their coefficients.
    """

    position: int
    count: int
    quantiles: tuple[Finite, Finite, Finite, Finite, Finite]
    highest: tuple[tuple[TokenText, Finite], ...]
    lowest: tuple[tuple[TokenText, Finite], ...]


class PathsDocument(Document):
    """The result of `paths`: what single tokens, random vectors and triggers do, layer by layer.

    `noninitial` are all tokens with attention left out, `initial` a random choice of them with it,
    `random` Gaussian vectors with the embeddings' spread. `answers` has the layers' FFNs,
    `trigger_layer` the explosion layer whose trigger `coefficients` (null for none) are of; their
    quantiles are 0, .25, .5, .75 and 1. `first` is the token in front of those at the second
    position.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["paths"] = "paths"
    model: ModelRecord
    noninitial: PathRecord
    initial: PathRecord
    random: PathRecord
    answers: tuple[AnswerRecord, ...]
    trigger_layer: int | None
    coefficients: tuple[CoefficientRecord, ...]
    first: TokenText | None = None
    skipped: tuple[Skipped, ...] = ()
