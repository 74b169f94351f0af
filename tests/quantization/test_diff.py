"""`ckpt quant diff`: errors by their definition, and the lattice that was used."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from ckptforensics import diff_quantized, open_checkpoint, rounded
from tests.support.containers import assert_one_error, run
from tests.support.models import save, tiny_gpt2, tiny_llama

PLANTED = Path(__file__).parents[2] / "fixtures" / "planted"


@pytest.mark.parametrize(
    ("scheme", "lattice"),
    [
        ("int8", "8 bits, one scale"),
        ("int8-channel", "8 bits, a scale a row"),
        ("q4_0", "4 bits, groups of 32"),
        ("q8_0", "8 bits, groups of 32"),
    ],
)
def test_errors_and_lattices_of_a_rounded_model(scheme, lattice):
    source = open_checkpoint(PLANTED)
    copy = rounded(source, scheme)
    document = diff_quantized(source, copy)
    wrong = size = 0.0
    for row in document.tensors:
        a, b = source.store.read(row.tensor), copy.store.read(row.tensor)
        assert row.error == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-4)
        wrong, size = wrong + float(((b - a) ** 2).sum()), size + float((a**2).sum())
        assert row.lattice == lattice
        assert row.within == pytest.approx(1, abs=0.02)
    assert document.error == pytest.approx((wrong / size) ** 0.5, rel=1e-4)
    # Every linear weight, those of queries and keys among them.
    assert len(document.tensors) == len([n for n in source.store if "_proj" in n])
    assert sum(group.count for group in document.groups) == len(document.tensors)
    assert [row.layer for row in document.layers] == list(range(1, 9))
    for row in document.layers:
        own = [t.error for t in document.tensors if t.layer == row.layer]
        assert min(own) <= row.error <= max(own) == row.worst_error


def test_a_model_beside_itself_has_no_error_and_no_lattice():
    document = diff_quantized(PLANTED, PLANTED)
    assert document.error == 0
    assert {(t.error, t.lattice, t.within) for t in document.tensors} == {(0.0, None, None)}


def test_gpt2_is_compared_as_its_outputs_lie(tmp_path):
    """Its maps are stored as (in, out): groups run down the stored columns."""
    source = open_checkpoint(save(tiny_gpt2(n_embd=64, n_inner=128), tmp_path))
    document = diff_quantized(source, rounded(source, "int8-channel"))
    assert {row.lattice for row in document.tensors} == {"8 bits, a scale a row"}


def test_models_that_do_not_correspond(tmp_path):
    other = save(tiny_llama(), tmp_path)
    with pytest.raises(Exception, match="the source has 8 layers and the copy 3"):
        diff_quantized(PLANTED, other)


def test_the_command(capsys, tmp_path):
    ran = run(capsys, "quant", "diff", PLANTED, PLANTED, "-v", "-q")
    assert ran.code == 0
    assert "none found" in ran.out
    ran = run(capsys, "quant", "diff", PLANTED, PLANTED, "--format", "csv", "-q")
    assert len(list(csv.DictReader(io.StringIO(ran.out)))) == 56
    ran = run(capsys, "quant", "diff", PLANTED, PLANTED, "--format", "json", "-q")
    assert json.loads(ran.out)["kind"] == "quantization-diff"
    assert_one_error(run(capsys, "quant", "diff", PLANTED, tmp_path / "none"), 4)
