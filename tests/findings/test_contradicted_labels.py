"""Labels of an encoding that the values contradict end in a refusal, and odd ones are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.errors import TensorError
from ckptforensics.findings import fingerprint_distance
from tests.findings.test_quantized_models import GROUP, Parts, _words, fp8, quantized_copy
from tests.support.containers import assert_one_error, run
from tests.support.models import save, tiny_llama


def rewritten(
    planted: Path, folder: Path, write: Callable[[torch.Tensor], Parts], settings: Any = None
) -> Path:
    """The planted model with its projections as `write` stores them, and a configuration."""
    tensors: Parts = {}
    for name, tensor in load_file(planted / "model.safetensors").items():
        stem = name.removesuffix("weight")
        parts = write(tensor.float()) if name.endswith("_proj.weight") else {"weight": tensor}
        tensors |= {stem + k: t.contiguous() for k, t in parts.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((planted / "config.json").read_text())
    if settings is not None:
        config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def symmetric_gptq(weight: torch.Tensor, stored_zero: int, bits: int = 4) -> Parts:
    """Codes around half their range, as GPTQ writes them where `sym` is on."""
    half = 2 ** (bits - 1)
    groups = weight.reshape(len(weight), -1, GROUP)
    scale = (groups.abs().amax(-1).clamp(min=1e-4) / (half - 0.5)).half()
    codes = (groups / scale.float()[..., None] + half).round().clamp(0, 2 * half - 1)
    zeros = torch.full_like(scale.T, stored_zero).long()
    return {
        "qweight": _words(codes.reshape(weight.shape).long(), bits).T,
        "qzeros": _words(zeros, bits),
        "scales": scale.T,
    }


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("written", "less"), [("gptq", 1), ("gptq_v2", 0)])
def test_symmetric_codes_that_do_not_lie_around_their_zero_points(
    bits, written, less, planted, tmp_path, capsys
):
    """The zero points of one format under the name of the other."""
    other = {"gptq": "gptq_v2", "gptq_v2": "gptq"}[written]

    def write(weight: torch.Tensor) -> Parts:
        return symmetric_gptq(weight, 2 ** (bits - 1) - less, bits)

    settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP}
    right = rewritten(
        planted, tmp_path / "right", write, {**settings, "checkpoint_format": written}
    )
    found = ckptforensics.sign(right).document
    assert fingerprint_distance(found.fingerprint, mark(planted)) <= 8
    wrong = rewritten(planted, tmp_path / "wrong", write, {**settings, "checkpoint_format": other})
    ran = run(capsys, "sign", wrong)
    assert_one_error(ran, 2, "qzeros", f"'{other}'", f"set 'checkpoint_format' to '{written}'")
    # The advice works.
    config = json.loads((wrong / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = written
    (wrong / "config.json").write_text(json.dumps(config))
    assert ckptforensics.sign(wrong).document.fingerprint == found.fingerprint


def mark(model: Path) -> Any:
    return ckptforensics.sign(model).document.fingerprint


def test_codes_without_their_scale(planted, tmp_path, capsys):
    """As FP8 weights from which a tool dropped scales and configuration."""
    folder = rewritten(planted, tmp_path / "m", lambda w: {"weight": fp8(w)["weight"]})
    for command in ("sign", "inspect"):
        assert_one_error(run(capsys, command, folder), 2, "F8_E4M3", "no scale", ".weight")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_integers_that_nothing_explains(dtype, planted, tmp_path, capsys):
    folder = rewritten(planted, tmp_path / "m", lambda w: {"weight": (w * 50).round().to(dtype)})
    assert_one_error(run(capsys, "sign", folder), 2, "integers", ".weight")


def test_weights_that_were_only_rounded_to_eight_bits(planted, tmp_path):
    """No scale is missing where elements are as small as weights are."""

    def rounded(weight: torch.Tensor) -> Parts:
        return {"weight": weight.clamp(-16, 16).to(torch.float8_e4m3fn)}

    folder = rewritten(planted, tmp_path / "m", rounded)
    plain = rewritten(planted, tmp_path / "p", lambda w: {"weight": rounded(w)["weight"].float()})
    assert mark(folder) == mark(plain)


@pytest.mark.parametrize(
    ("true", "label"), [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)]
)
def test_sixteen_bits_of_one_type_under_the_name_of_the_other(true, label, tmp_path, capsys):
    """As a header that somebody edited; true types of all kinds of weights are in other tests."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
    folder = save(tiny_llama(**sizes), tmp_path / "m")
    tensors = {n: t.to(true) for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert run(capsys, "sign", folder).code == 0
    wrong = {n: t.view(label) for n, t in tensors.items()}
    save_file(wrong, folder / "model.safetensors", metadata={"format": "pt"})
    for command in ("sign", "inspect"):
        ran = run(capsys, command, folder)
        assert_one_error(ran, 2, "the elements are labelled", "fetch the file again")


def per_tensor(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().amax() / 448
    return (weight / scale).to(torch.float8_e4m3fn), scale


def test_scales_named_before_the_weight(planted, tmp_path):
    """`scale_weight` beside each weight, and nothing in the configuration."""

    def write(weight: torch.Tensor) -> Parts:
        codes, scale = per_tensor(weight)
        return {"weight": codes, "scale_weight": scale, "scale_input": torch.ones(())}

    found = ckptforensics.sign(rewritten(planted, tmp_path / "m", write)).document.fingerprint
    assert fingerprint_distance(found, mark(planted)) <= 4


def test_scales_of_the_cache_of_keys_and_values(planted, tmp_path):
    """`kv_scale`, of older servers, is of the running model and of no weight."""

    def write(weight: torch.Tensor) -> Parts:
        codes, scale = per_tensor(weight)
        return {"weight": codes, "weight_scale": scale, "kv_scale": torch.tensor(0.02)}

    folder = rewritten(planted, tmp_path / "m", write, {"quant_method": "fp8"})
    found = ckptforensics.sign(folder).document.fingerprint
    assert fingerprint_distance(found, mark(planted)) <= 4


@pytest.mark.parametrize("algorithm", ["FP8", "NVFP4"])
def test_a_quantization_told_in_a_file_of_its_own(algorithm, planted, tmp_path, capsys):
    encoding = {"FP8": "fp8", "NVFP4": "nvfp4"}[algorithm]
    if algorithm == "NVFP4":
        folder = quantized_copy(planted, tmp_path / "m", encoding)
    else:

        def write(weight: torch.Tensor) -> Parts:
            codes, scale = per_tensor(weight)
            return {"weight": codes, "weight_scale": scale, "input_scale": torch.ones(())}

        folder = rewritten(planted, tmp_path / "m", write, {"quant_method": "modelopt"})
    expected = ckptforensics.sign(folder).document.fingerprint
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    assert run(capsys, "sign", folder).code == 3
    stated = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}
    (folder / "hf_quant_config.json").write_text(json.dumps(stated))
    assert ckptforensics.sign(folder).document.fingerprint == expected
    (folder / "hf_quant_config.json").write_text("{}")
    assert_one_error(run(capsys, "sign", folder), 2, "hf_quant_config.json", "'quantization'")


def test_asymmetric_codes_are_not_suspected(planted, tmp_path):
    """Zero points that differ between groups, both formats written right."""
    folder = quantized_copy(planted, tmp_path / "m", "gptq")
    assert ckptforensics.sign(folder).document.fingerprint
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TensorError, match="zero points"):
        ckptforensics.sign(folder)
