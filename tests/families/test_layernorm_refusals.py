"""Blocks that look like a known one and are not are refused, not read as if they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.errors import CkptError, FormatError, TensorError
from tests.support.families.cases_layernorm import CASES
from tests.support.families.harness import State, build_model

Change = Callable[[State, dict[str, Any]], None]


def _without_second_norm(tensors: State, _config: dict[str, Any]) -> None:
    del tensors["model.layers.1.post_attention_layernorm.weight"]


def _without_norms_of_the_mlp(tensors: State, _config: dict[str, Any]) -> None:
    """As if Falcon's sequential block shared a norm."""
    for name in [n for n in tensors if "post_attention_layernorm" in n]:
        del tensors[name]


def _says(key: str, value: object) -> Change:
    def change(_tensors: State, config: dict[str, Any]) -> None:
        config[key] = value

    return change


@pytest.mark.parametrize(
    ("case_name", "change", "error", "words"),
    [
        (
            "stablelm-2-1.6b",
            _without_second_norm,
            TensorError,
            "model.layers.1.post_attention_layernorm.weight",
        ),
        ("stablelm-epoch", _says("use_parallel_residual", "maybe"), FormatError, "maybe"),
        ("falcon-rw", _without_norms_of_the_mlp, TensorError, "transformer.h.0."),
        (
            "bloom-saved-now",
            _says("apply_residual_connection_post_layernorm", True),
            FormatError,
            "apply_residual_connection_post_layernorm",
        ),
        ("mpt-alibi", _says("norm_type", "rmsnorm"), FormatError, "norm_type"),
        ("codegen", _says("auto_map", {"AutoModel": "x"}), FormatError, "auto_map"),
        ("openai-gpt", _says("afn", "silu"), FormatError, "afn"),
    ],
)
def test_refused(
    case_name: str, change: Change, error: type[CkptError], words: str, tmp_path: Path
) -> None:
    case = next(c for c in CASES if c.name == case_name)
    build_model(case).save_pretrained(tmp_path)
    weights, settings = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors, config = load_file(weights), json.loads(settings.read_text())
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors, config)
    save_file(tensors, weights)
    settings.write_text(json.dumps(config))
    with pytest.raises(error, match=words):
        ckptforensics.open_checkpoint(tmp_path)
