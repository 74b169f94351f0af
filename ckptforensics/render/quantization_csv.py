"""Plans of quantization as comma-separated values."""

from __future__ import annotations

from ckptforensics.render.csv_text import csv_text
from ckptforensics.render.view import View
from ckptforensics.results.quantization_plan import QuantizationPlanDocument

PLAN_COLUMNS = (
    *("rank", "module", "tensor", "layer", "role", "label", "keep", "bytes_16", "bytes_8"),
    *("saves", "initial", "ordinary", "ordinary_alone"),
)


def plan_csv(document: QuantizationPlanDocument, view: View) -> str:
    """A row a module with the columns `PLAN_COLUMNS`."""
    rows = (
        (
            *(m.rank, m.module, m.tensor, m.layer, m.role, m.label, m.keep),
            *(m.bytes_16, m.bytes_8, m.saves),
            *(m.error.initial, m.error.ordinary, m.error.ordinary_alone),
        )
        for m in document.modules
    )
    return csv_text(PLAN_COLUMNS, rows)
