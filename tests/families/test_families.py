"""Rollout and L of every family against transformers, one row a case.

See `harness` for the rollout's and `reference` for L's side.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

import pytest
import torch

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
Built = tuple[Case, torch.nn.Module, Path]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A case's model, and where it is saved: made once for the tests below."""
    case: Case = request.param
    model = build_model(case)
    return case, model, save_model(model, tmp_path_factory.mktemp("model"), case)


def test_rollout_equals_transformers(built: Built) -> None:
    case, model, folder = built
    checkpoint = ckptforensics.open_checkpoint(folder)
    assert checkpoint.architecture.family.name == case.family
    assert checkpoint.architecture.source == "config"
    errors = relative_errors(rollout_states(folder, TOKENS), hidden_states(model, case, TOKENS))
    assert errors.max() < case.tolerance


def test_linear_map_equals_dense_reference(built: Built) -> None:
    """L against Jacobian and least squares of the model's own modules, up to sampling noise."""
    case, model, folder = built
    found = compare(model, case.blocks, lambda _: run_one_token(model, case), folder)
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
