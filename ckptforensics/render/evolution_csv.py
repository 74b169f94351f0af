"""Norms and directions along checkpoints, as comma-separated values."""

from __future__ import annotations

from collections.abc import Iterator

from ckptforensics.render.csv_text import csv_text
from ckptforensics.render.view import View
from ckptforensics.results.evolution import AngleRecord, EvolutionDocument

EVOLUTION_COLUMNS = (
    *("step", "checkpoint", "layer", "prefix", "label", "s1", "s2", "gap"),
    *("initial_norm", "typical_norm", "u_previous_deg", "u_previous_clear"),
    *("u_last_deg", "u_last_clear", "v_previous_deg", "v_last_deg"),
)


def evolution_csv(document: EvolutionDocument, view: View) -> str:
    """A row a checkpoint and layer with the columns `EVOLUTION_COLUMNS`."""
    return csv_text(EVOLUTION_COLUMNS, _rows(document))


def _rows(document: EvolutionDocument) -> Iterator[tuple[object, ...]]:
    for place, checkpoint in enumerate(document.checkpoints):
        for layer in document.layers:
            state = layer.checkpoints[place]
            yield (
                *(checkpoint.step, checkpoint.name, layer.layer, layer.prefix, state.label),
                *(*state.sigma, state.gap, state.initial_norm, state.typical_norm),
                *(*_cells(state.u_previous), *_cells(state.u_last)),
                *(state.v_previous_deg, state.v_last_deg),
            )


def _cells(angle: AngleRecord | None) -> tuple[object, object]:
    return (None, None) if angle is None else (angle.degrees, angle.clear)
