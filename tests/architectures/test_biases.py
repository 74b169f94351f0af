"""Biases that transformers would drop are refused; the oracle is transformers' classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import CONFIG_MAPPING

from ckptforensics.architectures import families
from ckptforensics.architectures.biases import bias_rules
from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import FormatError
from tests.families.test_families import CASES
from tests.families.test_hybrids import GEMMA3N, HYBRIDS
from tests.support.models import save, tiny_llama

# Settings of mixers, routers and the head, and some without effect on what transformers builds.
_OTHER = {"conv_bias", "lm_head_bias", "mamba_conv_bias", "mamba_proj_bias", "no_bias"} | {
    *("projectors_bias", "use_conv_bias", "use_expert_bias")
}
# Their published code is not transformers', or their classes have all biases by default.
_UNRULED = {"dinov2", "dinov2_with_registers", "exaone", "falcon_mamba", "internlm3", "mamba"} | {
    "mamba2"
}


def _configured(model_type):
    return CONFIG_MAPPING[model_type]().get_text_config()


def _settings(config):
    found = {k: v for k, v in config.to_dict().items() if "bias" in k and type(v) is bool}
    return {k: v for k, v in found.items() if k not in _OTHER}


@pytest.mark.parametrize("model_type", sorted(bias_rules()))
def test_defaults_are_those_of_the_classes(model_type):
    rule = bias_rules()[model_type]
    named = dict.fromkeys(rule.on, True) | dict.fromkeys(rule.off, False)
    found = _settings(_configured(model_type))
    if model_type in ("gemma3n", "gemma3n_text", "nemotron_h"):  # attention is not read of these
        found, named = ({k: d[k] for k in d if k in rule.off} for d in (found, named))
        found = {k: v for k, v in found.items() if k in named}
    assert named == found


def test_every_class_with_settings_of_biases_has_a_rule():
    types = {t for f in families().values() for t in f.model_types if t in CONFIG_MAPPING}
    with_settings = {t for t in types - _UNRULED if _settings(_configured(t))}
    assert with_settings <= set(bias_rules())


_RULED = [
    case
    for case in [*CASES, *(hybrid.case for hybrid in [*HYBRIDS, GEMMA3N])]
    if case.build is None and case.config().get_text_config().model_type in bias_rules()
]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("case", _RULED, ids=lambda case: case.name)
def test_roles_are_those_of_the_classes(case, given):
    """A role that the rule denies a bias has none in the class, and the others have one."""
    config = case.config()
    text = config.get_text_config()
    rule = bias_rules()[text.model_type]
    for setting in (*rule.on, *rule.off):
        setattr(text, setting, given)
    make = getattr(transformers, case.model)
    with torch.device("meta"):
        model = (make.from_config if case.model.startswith("Auto") else make)(config)
    stored = {name for name, _ in model.named_parameters() if ".vision_" not in name}
    allowed = set(rule.always)
    for settings in (rule.on, rule.off) if given else ():
        allowed |= {role for roles in settings.values() for role in roles}
    for role, spec in families()[case.family].hf.tensors.items():
        for form in spec.forms():
            for name in form.name:
                weights = [n for n in stored if n.endswith(f".{name}.weight")]
                biases = {n for n in stored if n.endswith(f".{name}.bias")}
                if weights and not role.startswith("expert"):
                    assert bool(biases) == (role in allowed), (role, name)


def _model(folder, bias, value=0.5, **config):
    """A LLaMA without biases but one, and a configuration that does not speak of them."""
    save(tiny_llama(attention_bias=False, mlp_bias=False), folder)
    tensors = load_file(folder / "model.safetensors")
    for layer in range(3):
        name = f"model.layers.{layer}.{bias}"
        rows = len(tensors[f"{name}.weight"])
        tensors[f"{name}.bias"] = np.full(rows, value, np.float32)
    save_file(tensors, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    settings = {k: v for k, v in settings.items() if not k.endswith("_bias")} | config
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("bias", "config", "reason"),
    [
        ("mlp.down_proj", {}, "mlp_bias is not set, which means false"),
        ("mlp.gate_proj", {"attention_bias": True}, "mlp_bias is not set, which means false"),
        ("self_attn.v_proj", {}, "attention_bias is not set, which means false"),
        ("self_attn.q_proj", {"attention_bias": None}, "attention_bias is not set"),
        ("self_attn.o_proj", {"attention_bias": False}, "attention_bias is false"),
        ("self_attn.v_proj", {"model_type": "mistral"}, "'mistral' has no such bias"),
        ("mlp.up_proj", {"model_type": "qwen2", "mlp_bias": True}, "'qwen2' has no such bias"),
        ("self_attn.o_proj", {"model_type": "helium", "attention_bias": True}, "no such bias"),
        ("self_attn.o_proj", {"model_type": "seed_oss"}, "attention_out_bias is not set"),
        ("self_attn.v_proj", {"model_type": "seed_oss", "attention_bias": False}, "is false"),
        ("mlp.up_proj", {"model_type": "ernie4_5"}, "use_bias is not set"),
    ],
)
def test_biases_that_the_class_does_not_build(tmp_path, bias, config, reason):
    with pytest.raises(FormatError, match=f"{reason}.*{bias}.bias is stored"):
        open_checkpoint(_model(tmp_path, bias, **config))


@pytest.mark.parametrize(
    ("bias", "config"),
    [
        ("mlp.down_proj", {"mlp_bias": True}),
        ("self_attn.v_proj", {"model_type": "qwen2"}),
        ("self_attn.v_proj", {"model_type": "seed_oss"}),
        ("mlp.down_proj", {"model_type": "of-nobody"}),
    ],
)
def test_biases_that_are_read_or_of_unknown_code(tmp_path, bias, config):
    layer = open_checkpoint(_model(tmp_path, bias, **config)).architecture.layers[0]
    assert any(ref.bias is not None for ref in layer.refs.values())


@pytest.mark.parametrize("config", [{}, {"mlp_bias": False}])
def test_biases_of_zeros_pass(tmp_path, config):
    """Writers of quantized weights store them, whatever the class builds."""
    open_checkpoint(_model(tmp_path, "mlp.down_proj", 0.0, **config))
