"""Logs of small networks as comma-separated values."""

from __future__ import annotations

from ckptforensics.render.csv_text import csv_text
from ckptforensics.render.view import View
from ckptforensics.results.toy import ToyDocument

TOY_COLUMNS = (
    *("run", "step", "loss", "excess_trigger", "excess_other", "layer", "attention"),
    *("logit_gap", "value_norm", "residual_norm", "others_norm", "highest"),
)


def toy_csv(document: ToyDocument, view: View) -> str:
    """A row a run, measured step and layer, with the columns `TOY_COLUMNS`."""
    rows = (
        (
            *(run.path, point.step, point.loss, point.excess_trigger, point.excess_other),
            *(layer + 1, point.attention[layer]),
            point.logit_gap[layer] if point.logit_gap else None,
            *(point.value_norm[layer], point.residual_norm[layer], point.others_norm[layer]),
            point.highest[layer] if point.highest else None,
        )
        for run in document.runs
        for point in run.curve
        for layer in range(len(point.residual_norm))
    )
    return csv_text(TOY_COLUMNS, rows)
