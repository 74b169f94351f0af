"""The notebook of docs/ runs from its first cell to its last, and every picture is one."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbmake.nb_run import NotebookRun

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "example.ipynb"


def test_the_notebook_runs(smollm2_gguf, monkeypatch):
    monkeypatch.setenv("CKPT_MODEL", str(smollm2_gguf))
    monkeypatch.setenv("CKPT_TOKENS", "256")
    done = NotebookRun(NOTEBOOK, default_timeout=300).execute()
    assert done.error is None
    cells = [cell for cell in done.nb.cells if cell.cell_type == "code"]
    drawn = [cell for cell in cells if "ckpt.picture" in cell.source]
    assert len(drawn) == 4
    for cell in drawn:
        output = cell.outputs[-1]
        assert "<svg" in output.data["text/html"]
        assert "<figcaption>" in output.data["text/html"]
    assert float(cells[2].outputs[0].data["text/plain"]) < 1e-4


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
