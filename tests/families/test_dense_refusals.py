"""Dense models that are refused, because an answer would be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.errors import FormatError, TensorError
from tests.support.families.cases_dense import CASES
from tests.support.families.harness import build_model, save_model

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", ["qwen2-biases", "gemma", "olmo", "internlm2", "phi3"])
def test_a_tensor_the_family_does_not_know_is_refused(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    path = save_model(build_model(case), tmp_path, case) / "model.safetensors"
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    norm = next(k for k in tensors if ".layers.0." in k)
    stranger = norm.split(".layers.0.")[0] + ".layers.0.extra_norm.weight"
    save_file(tensors | {stranger: tensors[norm].clone()}, path, metadata={"format": "pt"})
    with pytest.raises(TensorError, match="extra_norm"):
        ckptforensics.open_checkpoint(tmp_path)


def test_phi3small_with_another_activation_is_refused(tmp_path: Path) -> None:
    case = BY_NAME["phi3small"]
    settings = save_model(build_model(case), tmp_path, case) / "config.json"
    config = json.loads(settings.read_text())
    settings.write_text(json.dumps(config | {"hidden_act": "silu"}))
    with pytest.raises(FormatError):
        ckptforensics.open_checkpoint(tmp_path)
