"""Plans of quantization, and quantized copies, as comma-separated values."""

from __future__ import annotations

from ckptforensics.render.csv_text import csv_text
from ckptforensics.render.view import View
from ckptforensics.results.quantization_diff import QuantizationDiffDocument
from ckptforensics.results.quantization_plan import QuantizationPlanDocument

PLAN_COLUMNS = (
    *("rank", "module", "tensor", "layer", "role", "label", "keep", "bytes_16", "bytes_8"),
    *("saves", "initial", "ordinary", "ordinary_alone"),
)
DIFF_COLUMNS = (
    *("layer", "role", "tensor", "source_dtype", "dtype"),
    *("error", "lattice", "step", "within"),
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


def diff_csv(document: QuantizationDiffDocument, view: View) -> str:
    """A row a matrix with the columns `DIFF_COLUMNS`."""
    rows = (
        (t.layer, t.role, t.tensor, *t.dtypes, t.error, t.lattice, t.step, t.within)
        for t in document.tensors
    )
    return csv_text(DIFF_COLUMNS, rows)
