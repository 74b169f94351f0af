"""Models of a type that no family claims: what names, configuration and gains say is heeded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Jais2Config,
    Jais2ForCausalLM,
    NanoChatConfig,
    NanoChatForCausalLM,
    XGLMConfig,
    XGLMForCausalLM,
)

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import FormatError, TensorError, UnknownFamily
from ckptforensics.findings import rollout
from tests.support.containers import run
from tests.support.models import hidden_states, tiny_llama, write

_SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_TOKENS = (3, 9)


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            is_gain = (
                "norm" in name and name.endswith("weight") and "Gemma" not in type(model).__name__
            )
            parameter.copy_(1 + noise if is_gain else noise)
    return model.eval()


def weights(model):
    tied = model.config.tie_word_embeddings
    return {n: t for n, t in model.state_dict().items() if not (tied and n == "lm_head.weight")}


def config_of(model, *dropped, **changes):
    config = model.config.to_dict() | {"model_type": "of_my_own"} | changes
    return {k: v for k, v in config.items() if k not in dropped}


def require_norms_of(model, folder, *, tokens=_TOKENS):
    """The norms of single tokens are those of transformers."""
    ours = np.array(rollout(folder, tokens=tokens).document.norms)
    theirs = np.linalg.norm(hidden_states(model, [[t] for t in tokens])[:, 0], axis=-1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_factors_of_the_configuration_are_applied(tmp_path):
    model = randomised(
        GraniteForCausalLM(
            GraniteConfig(
                **_SIZES,
                embedding_multiplier=12.0,
                residual_multiplier=0.22,
                attention_multiplier=0.1,
                logits_scaling=8.0,
            )
        )
    )
    folder = write(tmp_path / "model", weights(model), config_of(model))
    notes = open_checkpoint(folder).architecture.notes
    assert any("residual_multiplier" in note for note in notes)
    require_norms_of(model, folder)


def test_a_branch_factor_over_the_root_of_the_layers(tmp_path):
    model = tiny_llama()
    config = config_of(model, scale_emb=12, scale_depth=1.4, dim_model_base=256)
    plain = open_checkpoint(write(tmp_path / "model", weights(model), config)).architecture
    assert plain.embedding_scale == 12
    assert plain.attention_scale == plain.ffn_scale == pytest.approx(1.4 / 3**0.5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mlp_multiplier", 0.5),
        ("ffn_output_scale", 2.0),
        ("mup_scaling_factor", 3),
        ("clip_qkv", 8.0),
        ("use_parallel_residual", True),
        ("do_layer_norm_before", False),
    ],
)
def test_settings_that_names_do_not_show_are_refused(tmp_path, key, value):
    model = tiny_llama()
    folder = write(tmp_path / "model", weights(model), config_of(model, **{key: value}))
    with pytest.raises(UnknownFamily, match=f"'{key}' says that its blocks do more"):
        open_checkpoint(folder)


def test_factors_on_scores_and_logits_change_nothing(tmp_path):
    model = tiny_llama()
    harmless = {
        "attention_multiplier": 0.1,
        "logits_scaling": 8.0,
        "logit_scale": 0.2,
        "rope_scaling_factor": 4.0,
        "image_scale": 3,
        "routed_scaling_factor": 2.5,
        "initializer_range": 0.02,
        "mlp_multiplier": 1.0,
    }
    require_norms_of(model, write(tmp_path / "a", weights(model), config_of(model, **harmless)))


def test_gains_stored_minus_one_are_recognised(tmp_path):
    model = randomised(GemmaForCausalLM(GemmaConfig(**_SIZES)))
    folder = write(tmp_path / "model", weights(model), config_of(model))
    assert open_checkpoint(folder).architecture.family.name == "gemma"
    require_norms_of(model, folder)


def test_gains_near_one_are_taken_as_they_are(tmp_path):
    # The names are Nemotron's, whose gains are stored minus 1.
    model = randomised(Jais2ForCausalLM(Jais2Config(**_SIZES)))
    require_norms_of(model, write(tmp_path / "model", weights(model), model.config.to_dict()))


@pytest.mark.parametrize("added", [0, 1], ids=["as the class stores them", "with the 1 added"])
def test_gains_of_a_named_family_that_stores_them_minus_one(tmp_path, added):
    model = randomised(GemmaForCausalLM(GemmaConfig(**_SIZES)))
    tensors = {n: t + added if "norm" in n else t for n, t in weights(model).items()}
    found = open_checkpoint(write(tmp_path / "model", tensors, model.config.to_dict()))
    assert found.architecture.gain_offset == 1
    doubts = [note for note in found.architecture.notes if "wrong if it was added" in note]
    assert len(doubts) == added


def test_small_gains_are_a_doubt(tmp_path):
    model = tiny_llama()
    tensors = {n: t * 0.1 + 0.1 if "norm" in n else t for n, t in weights(model).items()}
    found = open_checkpoint(write(tmp_path / "model", tensors, config_of(model))).architecture
    assert found.gain_offset == 0
    assert any("wrong if they are stored minus 1" in note for note in found.notes)


@pytest.mark.parametrize("dropped", [(), ("rms_norm_eps",)])
def test_biases_of_norms_tell_of_layer_norms(tmp_path, dropped):
    model = tiny_llama(attention_bias=False, mlp_bias=False)
    for block in model.model.layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = torch.nn.LayerNorm(36, eps=3e-4)
            with torch.no_grad():
                norm.weight.copy_(1 + 0.2 * torch.randn(36))
                norm.bias.copy_(0.3 * torch.randn(36))
            setattr(block, name, norm)
    config = config_of(model, *dropped, **({"layer_norm_eps": 3e-4} if dropped else {}))
    require_norms_of(model, write(tmp_path / "model", weights(model), config))


def test_the_name_of_epsilon_tells_of_layer_norms(tmp_path):
    model = tiny_llama()
    for block in model.model.layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = torch.nn.LayerNorm(36, eps=3e-4, bias=False)
            norm.load_state_dict(getattr(block, name).state_dict())
            setattr(block, name, norm)
    config = config_of(model, "rms_norm_eps", layer_norm_eps=3e-4)
    require_norms_of(model, write(tmp_path / "model", weights(model), config))


def test_biases_of_norms_contradict_a_known_type(tmp_path):
    model = tiny_llama()
    biases = {f"model.layers.{n}.input_layernorm.bias": torch.ones(36) for n in range(3)}
    folder = write(tmp_path / "model", weights(model) | biases, model.config.to_dict())
    with pytest.raises(FormatError, match="norms of the family 'llama' have no biases"):
        open_checkpoint(folder)


def test_blocks_without_norms_are_refused(tmp_path, capsys):
    model = randomised(NanoChatForCausalLM(NanoChatConfig(**_SIZES)))
    folder = write(tmp_path / "model", weights(model), config_of(model))
    ran = run(capsys, "sign", str(folder))
    assert ran.code == 3
    assert "its blocks store no norms, so what normalises them cannot be told" in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("width", [36, 48])
@pytest.mark.parametrize("named", [True, False])
def test_of_several_stacks_the_language_model_is_taken(tmp_path, width, named):
    model = tiny_llama()
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=5,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        )
    )
    tensors = weights(model)
    tensors |= {f"model.vision_tower.{n}": t for n, t in tower.state_dict().items()}
    config = config_of(model, *(() if named else ("hidden_size", "model_type")))
    folder = write(tmp_path / "model", tensors, config)
    require_norms_of(model, folder)
    notes = open_checkpoint(folder).architecture.notes
    assert any("not read: 'model.vision_tower." in n and "(5 blocks)" in n for n in notes)


def test_two_equal_stacks_are_refused(tmp_path):
    tensors = weights(tiny_llama())
    both = {f"{side}.{n}": t for side in ("student", "teacher") for n, t in tensors.items()}
    folder = write(tmp_path / "model", both, config_of(tiny_llama()))
    with pytest.raises(UnknownFamily, match=r"several stacks.*'student\.model\.layers\.'"):
        open_checkpoint(folder)


@pytest.mark.parametrize("typed", [True, False])
def test_a_guess_that_lacks_tensors_is_no_damage(tmp_path, typed):
    """XGLM has OPT's names and makes its positions as it runs."""
    sizes = {"d_model": 48, "ffn_dim": 80, "num_layers": 2, "attention_heads": 4, "vocab_size": 64}
    model = randomised(XGLMForCausalLM(XGLMConfig(**sizes, max_position_embeddings=16)))
    config = {k: v for k, v in model.config.to_dict().items() if typed or k != "model_type"}
    folder = write(tmp_path / "model", weights(model), config)
    told = "no family is named 'xglm'.*positions.*missing" if typed else "embed_positions"
    with pytest.raises(UnknownFamily if typed else TensorError, match=told):
        open_checkpoint(folder)


def test_a_model_of_two_stacks_is_no_damage(tmp_path):
    """CSM: the configuration speaks of one stack, and the token embeddings are the other's."""
    large, small = (tiny_llama(num_hidden_layers=n) for n in (3, 2))
    tensors = {f"backbone_{n}": t for n, t in weights(large).items() if "layers" in n}
    tensors |= {f"depth_decoder.{n}": t for n, t in weights(small).items()}
    folder = write(tmp_path / "model", tensors, config_of(large, model_type="csm"))
    told = r"'csm'.*'model.layers.' \(2 blocks\), 'backbone_model.layers.' \(3 blo"
    with pytest.raises(UnknownFamily, match=told):
        open_checkpoint(folder)
