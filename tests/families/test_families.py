"""Rollout and L of every family against transformers, one row a case.

See `harness` for the rollout's and `reference` for L's side.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

import pytest

import ckptforensics
import tests.support.families as package
from tests.support.families.harness import (
    Case,
    build_model,
    hidden_states,
    relative_errors,
    rollout_states,
    run_one_token,
    save_model,
)
from tests.support.families.reference import compare
from tests.support.families.towers import TOWERS, Tower, run_one_patch, saved_tower

CASES: list[Case] = [
    case
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    if module.startswith("cases_")
    for case in importlib.import_module(f"{package.__name__}.{module}").CASES
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
    """L against Jacobian and least squares of the model's own modules, up to sampling noise."""
    model = build_model(case)
    save_model(model, tmp_path, case)
    found = compare(model, case.blocks, lambda _: run_one_token(model, case), tmp_path)
    assert found.problem() is None


@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: tower.name)
def test_linear_map_of_towers_equals_dense_reference(tower: Tower, tmp_path: Path) -> None:
    model = saved_tower(tower, tmp_path)
    assert compare(model, tower.blocks, run_one_patch, tmp_path).problem() is None


def test_case_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


def test_committed_list_names_the_cases() -> None:
    """`ckpt families` claims what the cases verify: run `python -m tools.families_report`."""
    from tests.families.test_hybrids import GEMMA3N, HYBRIDS
    from tools.families_report import VERIFIED

    listed = json.loads(VERIFIED.read_text())["families"]
    cases = [(case.family, case.name) for case in CASES]
    cases += [(tower.family, tower.name) for tower in TOWERS]
    cases += [(hybrid.family, hybrid.name) for hybrid in [*HYBRIDS, GEMMA3N]]
    assert sorted(cases) == sorted((f, name) for f, names in listed.items() for name in names)
