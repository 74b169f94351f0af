"""Rollout of every family against transformers, one row a case; see `harness`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import ckptforensics
import tests.families as package
from tests.families.harness import (
    Case,
    build_model,
    hidden_states,
    relative_errors,
    rollout_states,
    save_model,
)

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
    save_model(model, tmp_path)
    checkpoint = ckptforensics.open_checkpoint(tmp_path)
    assert checkpoint.architecture.family.name == case.family
    assert checkpoint.architecture.source == "config"
    errors = relative_errors(rollout_states(tmp_path, TOKENS), hidden_states(model, case, TOKENS))
    assert errors.max() < case.tolerance


def test_case_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
