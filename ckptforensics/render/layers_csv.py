"""The evidence of every layer, and norms of single tokens, as comma-separated values."""

from __future__ import annotations

from collections.abc import Iterator

from ckptforensics.render.csv_text import csv_text
from ckptforensics.render.view import View
from ckptforensics.results import LayersDocument, NormsDocument

LAYER_COLUMNS = (
    *("layer", "prefix", "label", "strength", "s1", "s2", "gap", "trigger_norm"),
    *("rollout_ratio", "response_plus", "response_minus", "eigenvalue_real", "eigenvalue_imag"),
)
NORM_COLUMNS = ("layer", "token", "norm")


def layers_csv(document: LayersDocument, view: View) -> str:
    """A row a layer with the columns `LAYER_COLUMNS`."""
    return csv_text(LAYER_COLUMNS, _layers(document))


def norms_csv(document: NormsDocument, view: View) -> str:
    """A row a layer and token with the columns `NORM_COLUMNS`.

    Layer 0 is the embedding; a random vector has no token.
    """
    return csv_text(NORM_COLUMNS, _norms(document))


def _layers(document: LayersDocument) -> Iterator[tuple[object, ...]]:
    for row in document.layers:
        response, eigenvalue = row.response, row.eigenvalue
        yield (
            *(row.layer, row.prefix, row.label, row.strength, *row.sigma, row.gap),
            *(row.trigger_norm, row.rollout_ratio),
            *((None, None) if response is None else (response.plus, response.minus)),
            *((None, None) if eigenvalue is None else (eigenvalue.real, eigenvalue.imag)),
        )


def _norms(document: NormsDocument) -> Iterator[tuple[object, ...]]:
    for stage in document.stages:
        for token, norm in zip(document.tokens, stage.norms, strict=True):
            yield stage.layer or 0, token, norm
