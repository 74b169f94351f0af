"""Rollout of every family against transformers, one row a case; see `harness`."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

import numpy as np
import pytest

import ckptforensics
import tests.families as package
from ckptforensics.layers import Block, Ffn, load_block
from ckptforensics.linear import AttentionMap, Fit, block_map
from tests.families.harness import (
    Case,
    build_model,
    hidden_states,
    relative_errors,
    rollout_states,
    save_model,
)
from tests.families.reference import BlockReference

CASES: list[Case] = [
    case
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    if module.startswith("cases_")
    for case in importlib.import_module(f"tests.families.{module}").CASES
]
TOKENS = [3, 7, 11, 19, 42]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rollout_equals_transformers(case: Case, tmp_path: Path) -> None:
    model = build_model(case)
    save_model(model, tmp_path, case)
    checkpoint = ckptforensics.open_checkpoint(tmp_path)
    assert checkpoint.architecture.family.name == case.family
    assert checkpoint.architecture.source == "config"
    errors = relative_errors(rollout_states(tmp_path, TOKENS), hidden_states(model, case, TOKENS))
    assert errors.max() < case.tolerance


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_linear_map_equals_dense_reference(case: Case, tmp_path: Path) -> None:
    """L of the first block against Jacobian and least squares of the model's own modules.

    Least squares on N vectors differs from the closed form by sampling noise alone, which has a
    size that can be told from the residuals and halves with four times as many vectors.
    """
    model = build_model(case)
    block = load_block(ckptforensics.open_checkpoint(save_model(model, tmp_path, case)), 1)
    if (reason := _beside_the_reference(case, block)) is not None:
        pytest.skip(reason)
    reference = BlockReference(model, case)
    assert block.attention is not None
    scale = 1 if block.attention.scale is None else block.attention.scale
    attention, identity = reference.attention_map(), np.eye(reference.width)
    ours = scale * AttentionMap(block.attention).dense()
    assert np.linalg.norm(ours - attention) < 1e-5 * np.linalg.norm(attention)

    whole = block_map(block, Fit()).dense()
    parallel = block.residual == "parallel"
    before = identity if parallel else identity + attention
    errors = []
    for count in (20_000, 80_000):
        ffn, expected = reference.ffn_map(count, before)
        linear = identity + attention + ffn if parallel else (identity + ffn) @ before
        errors.append(np.linalg.norm(whole - linear))
        assert 0.75 < errors[-1] / expected < 1.35
    assert 1.5 < errors[0] / errors[1] < 2.7


def _beside_the_reference(case: Case, block: Block) -> str | None:
    """Why the dense reference says nothing of a block."""
    attention, ffn = block.attention, block.ffn
    if attention is None or not isinstance(ffn, Ffn):
        return "the reference is of attention and one FFN"
    if attention.norm is None or ffn.norm is None:
        return "L of a block without norms before its branches is a convention"
    if any(n is not None for n in (attention.post_norm, attention.after_norm, ffn.post_norm)):
        return "a norm behind a branch is linearised for isotropic input, a convention"
    if attention.latent is not None or attention.sink is not None or attention.gate is not None:
        return "attention is not affine, its linear part is a convention"
    if case.build is not None:
        return "the test's own model is one module"
    return None


def test_case_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


def test_committed_list_names_the_cases() -> None:
    """`ckpt families` claims what the cases verify: run `python -m tests.families.report`."""
    from tests.families.report import VERIFIED
    from tests.families.test_vision import TOWERS

    listed = json.loads(VERIFIED.read_text())["families"]
    cases = [(case.family, case.name) for case in CASES]
    cases += [(tower.family, tower.name) for tower in TOWERS]
    assert sorted(cases) == sorted((f, name) for f, names in listed.items() for name in names)
