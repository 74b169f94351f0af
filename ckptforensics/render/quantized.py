"""The rows of an evaluation as people compare them: random choices together, loss beside loss."""

from __future__ import annotations

from math import log
from typing import NamedTuple

from ckptforensics.results.quantization import QuantizationDocument, QuantizationRow

# Added loss (nats a token) of which a share is told.
_LEAST_LOSS = 0.01


class Summary(NamedTuple):
    """A row, or the random choices of one together.

    `perplexity` is the mean of `lowest` to `highest`; `added` is the loss in nats a token that it
    has over the model that is not rounded, and `taken` the share of the loss that the same way of
    rounding adds without keeping anything, and this row does not. None where the other is missing.
    """

    row: str
    kept: int
    share: float
    alpha: float | None
    perplexity: float
    lowest: float
    highest: float
    bytes: int
    added: float | None
    taken: float | None


def summaries(document: QuantizationDocument) -> list[Summary]:
    """The document's rows in their order, those of several seeds as one."""
    groups: dict[str, list[QuantizationRow]] = {}
    for row in document.rows:
        groups.setdefault(row.row, []).append(row)
    means = {name: _mean([row.perplexity for row in rows]) for name, rows in groups.items()}
    added = {
        name: log(value / means["none"]) if "none" in means else None
        for name, value in means.items()
    }
    found = []
    for name, rows in groups.items():
        own, plain = added[name], added.get(name.partition("+")[0])
        taken = None
        # Of less the share would be that of noise.
        if own is not None and plain is not None and plain >= _LEAST_LOSS and "+" in name:
            taken = 1 - own / plain
        values = [row.perplexity for row in rows]
        found.append(
            Summary(
                name,
                len(rows[0].kept),
                _mean([row.kept_share for row in rows]),
                rows[0].alpha,
                means[name],
                min(values),
                max(values),
                round(_mean([row.bytes for row in rows])),
                own,
                taken,
            )
        )
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
