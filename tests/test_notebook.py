"""The notebooks of docs/ run from the first cell to the last, and every picture is one."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbmake.nb_run import NotebookRun

from ckptforensics.lineage.criteria import neurons, robust

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "example.ipynb"
COMPARED = ROOT / "docs" / "compare.ipynb"


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


def test_the_comparison_runs_and_explains_every_channel(monkeypatch):
    monkeypatch.setenv("CKPT_ZOO", str(ROOT / "fixtures" / "zoo"))
    done = NotebookRun(COMPARED, default_timeout=300).execute()
    assert done.error is None
    cells = [cell for cell in done.nb.cells if cell.cell_type == "code"]
    assert "derived" in cells[0].outputs[-1].data["text/plain"]
    assert "independent" in cells[0].outputs[-1].data["text/plain"]
    told = "".join(cell.source for cell in done.nb.cells if cell.cell_type == "markdown")
    for test in (*neurons.CRITERIA, *robust.CRITERIA):
        assert f"**{test.name}**" in told
    drawn = [cell for cell in cells if "plt.show()" in cell.source]
    assert drawn
    assert all("image/png" in cell.outputs[-1].data for cell in drawn)


@pytest.mark.parametrize("path", [NOTEBOOK, COMPARED], ids=lambda path: path.stem)
def test_the_notebook_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
