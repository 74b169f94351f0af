"""Blocks whose matrices stay in BF16 give what the decoded ones give, in every family."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.compute.bf16 import Bf16Matrix
from ckptforensics.errors import NotFinite
from ckptforensics.findings import measure as measuring
from ckptforensics.forward import attention_forward, block_forward
from ckptforensics.layers import Block, Ffn, load_attention, load_block, load_values, reader
from ckptforensics.lineage.correspondence.heads import head_spectra
from ckptforensics.linear import BlockMap, Fit, block_map
from ckptforensics.probes import trigger
from ckptforensics.tensors import FileReader
from tests.families.test_families import CASES
from tests.support.families.harness import build_model, save_model


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(reader, "KEPT_ELEMENTS", 0)


def in_bf16(folder: Path) -> Checkpoint:
    for file in folder.glob("*.safetensors"):
        tensors = {
            name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
            for name, tensor in load_file(file).items()
        }
        save_file({name: t.clone() for name, t in tensors.items()}, file, metadata={"format": "pt"})
    return ckptforensics.open_checkpoint(folder)


def one_of_each_kind(checkpoint: Checkpoint) -> list[int]:
    """Layers whose tensors have other names or shapes than those of the layers before them."""
    kinds: dict[frozenset[tuple[str, tuple[int, ...]]], int] = {}
    for layer in checkpoint.architecture.analysed:
        plan = checkpoint.architecture.layers[layer - 1]
        names = {name for name, _ in plan.names()}
        kind = frozenset(
            (name.removeprefix(plan.prefix), checkpoint.store.info(name).shape) for name in names
        )
        kinds.setdefault(kind, layer)
    return list(kinds.values())


def kept(block: Block) -> int:
    """How many matrices of the block are kept as they are stored."""
    ffns = [block.ffn] if isinstance(block.ffn, Ffn) else list(block.ffn.experts)
    linears = [linear for ffn in ffns for linear in (ffn.gate, ffn.up, ffn.down)]
    if block.attention is not None:
        linears += [block.attention.value, block.attention.output]
    return sum(linear is not None and isinstance(linear.matrix, Bf16Matrix) for linear in linears)


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def assert_along_is_apart(operator: BlockMap, x: np.ndarray, random: np.random.Generator) -> None:
    """F's products with what goes along are F's own, and L's are what they are alone."""
    f, g = (random.standard_normal((len(x), 1), dtype=np.float32) for _ in range(2))
    whole, along = operator.round_trip_along(x, f)
    expected = [*operator.round_trip(x), *operator.ffn.round_trip(f)]
    for found, apart in zip([*whole, *along], expected, strict=True):
        assert_near(found, apart)
    back, back_along = operator.rmatmat_along(x, g)
    assert_near(back, operator.rmatmat(x))
    assert_near(back_along, operator.ffn.rmatmat(g))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """The model of a case in BF16, made when it is first asked for."""
    cases = {case.name: case for case in CASES}

    @cache
    def make(name: str) -> Checkpoint:
        folder = tmp_path_factory.mktemp("stored")
        return in_bf16(save_model(build_model(cases[name]), folder, cases[name]))

    return make


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_kept_blocks_equal_decoded_ones(name: str, stored: Callable[[str], Checkpoint]) -> None:
    checkpoint = stored(name)
    random = np.random.default_rng(0)
    for layer in one_of_each_kind(checkpoint):
        blocks = [load_block(checkpoint, layer, keep=keep) for keep in (False, True)]
        assert kept(blocks[0]) == 0
        identity = np.eye(checkpoint.architecture.sizes.hidden_size, dtype=np.float32)
        for kind in ("canonical", "paper"):
            decoded, stored = (block_map(block, Fit(kind)) for block in blocks)
            assert_near(stored.dense(), decoded.dense())
            assert_near(stored.rmatmat(identity), decoded.rmatmat(identity))
            x = random.standard_normal((len(identity), 2), dtype=np.float32)
            pairs = zip(stored.round_trip(x), decoded.round_trip(x), strict=True)
            for found, expected in pairs:
                assert_near(found, expected)
            for operator in (decoded, stored):
                assert_along_is_apart(operator, x, random)
        v = random.standard_normal(len(identity))
        answers = [trigger(block.ffn, v / np.linalg.norm(v)) for block in blocks]
        assert_near(answers[1].output, answers[0].output)
        weights = [replace(answer.super_weight, amplitude=0.0) for answer in answers]
        assert weights[0] == weights[1]
        if blocks[0].mixer is None:
            x = random.standard_normal((5, len(identity)), dtype=np.float32)
            assert_near(block_forward(blocks[1], x), block_forward(blocks[0], x))


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_attention_read_alone_is_that_of_the_block(name, stored):
    checkpoint = stored(name)
    for layer in one_of_each_kind(checkpoint):
        whole = load_block(checkpoint, layer).attention
        if whole is None:
            continue
        x = np.random.default_rng(0).standard_normal(
            (3, checkpoint.architecture.sizes.hidden_size), dtype=np.float32
        )
        alone = load_attention(checkpoint, layer)
        assert np.array_equal(attention_forward(alone, x), attention_forward(whole, x))
        assert np.array_equal(head_spectra(load_values(checkpoint, layer)), head_spectra(whole))


def test_most_families_keep_something(stored: Callable[[str], Checkpoint]) -> None:
    """Or the test above would compare decoded blocks with decoded blocks."""
    without = []
    for case in CASES:
        checkpoint = stored(case.name)
        layers = checkpoint.architecture.analysed
        if not any(kept(load_block(checkpoint, layer, keep=True)) for layer in layers):
            without.append(case.name)
    # Transposed or in several pieces (GPT-2), behind an odd number of other elements (RoBERTa).
    assert len(without) <= 20, without
    assert len(CASES) > 120


def test_streamed_experts_are_kept(tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name.startswith("mixtral"))
    save_model(build_model(case), tmp_path, case)
    checkpoint = in_bf16(tmp_path)
    held = block_map(load_block(checkpoint, 1), Fit()).dense()
    streamed = load_block(checkpoint, 1, expert_memory=1, keep=True)
    assert isinstance(streamed.ffn.experts[0].up.matrix, Bf16Matrix)
    assert_near(block_map(streamed, Fit()).dense(), held)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_reported_as_always(value: float, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "llama-gqa-biases")
    save_model(build_model(case), tmp_path, case)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(tensors, file, metadata={"format": "pt"})
    checkpoint = in_bf16(tmp_path)
    messages = []
    for keep in (False, True):
        with pytest.raises(NotFinite) as found:
            load_block(checkpoint, 2, keep=keep)
        messages.append(str(found.value))
    assert messages[0] == messages[1]
    assert "row 3, column 5" in messages[0]


def test_an_error_names_the_same_tensor_in_every_run(planted: Path, tmp_path: Path) -> None:
    """Of several that are damaged: the order of a set of names differs between processes."""
    file = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text((planted / "config.json").read_text())
    tensors = load_file(planted / "model.safetensors")
    for tensor in tensors.values():
        tensor.view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    code = (
        "import sys, ckptforensics\n"
        "from ckptforensics.layers import load_block\n"
        "try: load_block(ckptforensics.open_checkpoint(sys.argv[1]), 1)\n"
        "except ckptforensics.CkptError as problem: print(problem)"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "6")
    }
    assert len(said) == 1
    assert "mlp.gate_proj" in said.pop()


def test_pages_are_given_back(tmp_path: Path, monkeypatch) -> None:
    """Each block's, when the block is gone: else the resident set would grow with the model."""
    case = next(c for c in CASES if c.name == "llama-gqa-biases")
    save_model(build_model(case), tmp_path, case)
    checkpoint = in_bf16(tmp_path)
    released = []
    monkeypatch.setattr(FileReader, "_release", lambda self, info, *_: released.append(info.name))
    block = load_block(checkpoint, 1, keep=True)
    matrices = {
        f"model.layers.0.{name}.weight"
        for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    }
    operator = block_map(block, Fit())
    assert not matrices & set(released)
    del block
    operator.matmat(np.ones((operator.shape[1], 1), np.float32))
    assert not matrices & set(released)
    del operator
    assert matrices <= set(released)


def test_signature_is_the_same_both_ways(tmp_path: Path, monkeypatch) -> None:
    case = next(c for c in CASES if c.name == "llama-gqa-biases")
    save_model(build_model(case), tmp_path, case)
    checkpoint = in_bf16(tmp_path)
    loaded = []
    original = measuring.stream_blocks

    def stream(*arguments, **options):
        for block in original(*arguments, **options):
            loaded.append(kept(block))
            yield block

    monkeypatch.setattr(measuring, "stream_blocks", stream)
    signatures = []
    for least in (1 << 60, 0):
        monkeypatch.setattr(measuring, "LARGE_MODEL", least)
        signatures.append(ckptforensics.sign(checkpoint))
    half = len(loaded) // 2
    assert not any(loaded[:half])
    assert all(loaded[half:])
    decoded, stored = signatures
    np.testing.assert_allclose(stored.sigma, decoded.sigma, rtol=1e-5)
    assert np.abs(np.sum(stored.u * decoded.u, axis=1)).min() > 1 - 1e-6
    assert stored.document.fingerprint == decoded.document.fingerprint
