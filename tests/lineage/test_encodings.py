"""Quantized checkpoints and adapters against themselves, their source, their dequantized twin."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.lineage.compare import compare_pair
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from tests.findings.test_quantized_models import ENCODINGS, quantized_copy
from tests.support.adapters import base_tensors, low_rank, write_adapter


def compared(*checkpoints):
    models = (Model(name, c) for name, c in zip("AB", checkpoints, strict=True))
    return compare_pair(Pair(*models))


def kind(record):
    return record.verdict, record.relation, record.direction.arrow


@pytest.fixture(scope="module", params=ENCODINGS)
def quantized(request, planted: Path, tmp_path_factory) -> Path:
    return quantized_copy(planted, tmp_path_factory.mktemp("encoded") / "q", request.param)


def test_a_quantized_checkpoint_is_identical_to_its_copy(quantized, tmp_path):
    copy = shutil.copytree(quantized, tmp_path / "copy")
    record = compared(open_checkpoint(quantized), open_checkpoint(copy))
    assert kind(record) == ("identical", None, "unknown")


def test_it_differs_by_one_code(quantized, tmp_path):
    copy = shutil.copytree(quantized, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    codes = next(
        t
        for n, t in tensors.items()
        if ("down_proj" in n and t.element_size() == 1)
        or ("down_proj" in n and t.dtype == torch.int32 and t.dim() == 2)
    )
    codes.view(torch.uint8).reshape(-1)[5] ^= 1
    save_file(tensors, copy / "model.safetensors")
    record = compared(open_checkpoint(quantized), open_checkpoint(copy))
    assert record.verdict in ("derived", "related", "re-parameterised")


def test_the_dequantized_twin_is_one_function_with_it(quantized, planted, tmp_path):
    reader = open_checkpoint(quantized).store
    save_file({n: torch.from_numpy(reader.read(n)) for n in reader}, tmp_path / "model.safetensors")
    shutil.copy(planted / "config.json", tmp_path)
    record = compared(open_checkpoint(quantized), open_checkpoint(tmp_path))
    assert kind(record) == ("re-parameterised", None, "unknown"), record.reasons


def test_it_is_quantized_from_its_source(quantized, planted):
    record = compared(open_checkpoint(planted), open_checkpoint(quantized))
    assert kind(record) == ("derived", "quantized", "a->b"), record.reasons


def test_adapters_on_plain_and_quantized_bases(planted, tmp_path):
    modules = ["model.layers.2.mlp.down_proj", "model.layers.4.self_attn.o_proj"]
    tensors = low_rank(base_tensors(planted), modules)
    adapter = write_adapter(tmp_path / "a", {n: 0.02 * t for n, t in tensors.items()})
    quantized = quantized_copy(planted, tmp_path / "q", "fp8")
    for base in (planted, quantized):
        adapted = [open_checkpoint(adapter, base=base) for _ in range(2)]
        assert compared(*adapted).verdict == "identical"
        record = compared(open_checkpoint(base), adapted[0])
        assert record.verdict == "derived", record.reasons
