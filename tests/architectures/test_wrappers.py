"""Names as wrappers leave them: the model is read as if it had been saved without."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_model
from torch.nn.utils import prune

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import NothingAnalysable
from ckptforensics.findings import rollout, sign
from tests.support.containers import run
from tests.support.models import tiny_gpt2, tiny_llama, write

_BEFORE = (
    *("_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "base_model.model."),
    *("base_model.", "model.", "llm.", "thinker.", "transformer."),
    *("pretrained_model.", "student.", "_fsdp_wrapped_module.", "_forward_module.", "actor."),
    *("policy.", "net.", "generator.", "text_model.", "a.b.c.", "module.model."),
    "model._orig_mod.",
)


def signature(folder):
    found = sign(folder).document
    return found.fingerprint, [layer.sigma for layer in found.layers]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    model = tiny_llama()
    config = model.config.to_dict()
    folder = write(tmp_path_factory.mktemp("plain"), model.state_dict(), config)
    return model.state_dict(), config, signature(folder)


@pytest.mark.parametrize("before", _BEFORE)
@pytest.mark.parametrize("typed", [True, False])
def test_what_stands_before_all_names(tmp_path, plain, before, typed):
    tensors, config, expected = plain
    config = {k: v for k, v in config.items() if typed or k != "model_type"}
    folder = write(tmp_path / "m", {before + n: t for n, t in tensors.items()}, config)
    assert signature(folder) == expected
    opened = open_checkpoint(folder)
    assert "lm_head.weight" in opened.store
    assert "model.embed_tokens.weight" in opened.store
    assert any(before.strip(".").split(".")[0] in note for note in opened.source.notes)


@pytest.mark.parametrize(
    "part", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
)
def test_what_stands_inside_of_names(tmp_path, plain, part):
    tensors, config, expected = plain
    inside = {re.sub(r"(layers\.\d+\.\w+)", rf"\1.{part}", n): t for n, t in tensors.items()}
    assert signature(write(tmp_path / "a", inside, config)) == expected
    around = {re.sub(r"(layers\.\d+)", rf"\1.{part}", n): t for n, t in tensors.items()}
    assert signature(write(tmp_path / "b", around, config)) == expected


def test_a_head_beside_a_wrapped_model(tmp_path, plain):
    tensors, config, expected = plain
    beside = {f"pretrained_model.{n}": t for n, t in tensors.items()}
    beside["v_head.summary.weight"] = torch.zeros(1, 36)
    assert signature(write(tmp_path / "m", beside, config)) == expected


@pytest.mark.parametrize("before", ["module.", "model.", "base_model.model."])
def test_names_of_another_family(tmp_path, before):
    model = tiny_gpt2()
    config = model.config.to_dict()
    tensors = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    expected = signature(write(tmp_path / "plain", tensors, config))
    wrapped = {before + n: t for n, t in tensors.items()}
    assert signature(write(tmp_path / "m", wrapped, config)) == expected


def test_two_wrapped_models_are_refused(tmp_path, plain, capsys):
    tensors, config, _ = plain
    both = {f"{side}.{n}": t for side in ("actor", "critic") for n, t in tensors.items()}
    ran = run(capsys, "sign", str(write(tmp_path / "m", both, config)))
    assert ran.code == 3
    assert "several models are stored together: 'actor.model.layers.' (3 blocks)" in ran.err


@pytest.mark.parametrize("before", ["ema.", "model_ema.module.", "teacher.base."])
def test_a_second_model_beside_the_first_is_named(tmp_path, plain, before):
    tensors, config, expected = plain
    both = tensors | {before + n: 1.1 * t for n, t in tensors.items()}
    folder = write(tmp_path / "m", both, config)
    assert signature(folder) == expected
    (note,) = (n for n in open_checkpoint(folder).architecture.notes if "further models" in n)
    assert note.startswith("'model.layers.' is read")
    assert f"'{before.replace('module.', '')}model.layers.' (3 blocks)" in note


def test_an_adapter_around_the_model_is_refused(tmp_path, plain):
    tensors, config, _ = plain
    name = "model.layers.0.mlp.up_proj"
    tensors = {n.replace("up_proj", "up_proj.base_layer"): t for n, t in tensors.items()}
    tensors[f"{name}.lora_A.default.weight"] = torch.zeros(2, 36)
    folder = write(tmp_path / "m", tensors, config)
    with pytest.raises(NothingAnalysable, match="not merged into it"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("apply", "told", "advice"),
    [
        (torch.nn.utils.weight_norm, "weight norm", "remove_weight_norm"),
        (torch.nn.utils.parametrizations.weight_norm, "parametrization", "remove_parametriz"),
        (torch.nn.utils.parametrizations.orthogonal, "parametrization", "remove_parametriz"),
        (torch.nn.utils.spectral_norm, "spectral norm", "remove_spectral_norm"),
        (lambda m: prune.l1_unstructured(m, "weight", 0.5), "mask of pruning", "prune.remove"),
    ],
    ids=["weight norm", "weight norm now", "orthogonal", "spectral norm", "pruning"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_pytorch_makes_from_others(tmp_path, apply, told, advice):
    model = tiny_llama()
    for block in model.model.layers:
        apply(block.mlp.down_proj)
    folder = write(tmp_path / "m", model.state_dict(), model.config.to_dict())
    with pytest.raises(NothingAnalysable, match=told) as caught:
        open_checkpoint(folder)
    assert advice in caught.value.hint


def test_a_mask_beside_whole_weights(tmp_path, plain):
    tensors, config, _ = plain
    masks = {f"{n}_mask": torch.ones_like(t) for n, t in tensors.items() if "down_proj.w" in n}
    with pytest.raises(NothingAnalysable, match="mask of pruning"):
        open_checkpoint(write(tmp_path / "m", tensors | masks, config))


_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


@pytest.mark.parametrize("before", ["", "_orig_mod."])
@pytest.mark.parametrize("typed", [True, False])
def test_names_of_nano_gpt(tmp_path, before, typed):
    """They are GPT-2's, of linear maps that are stored the other way round."""
    model = tiny_gpt2()
    config = model.config.to_dict() if typed else {"n_layer": 3, "n_head": 4, "n_embd": 36}
    tensors = {n: t.T if n.endswith(_CONV1D) else t for n, t in model.state_dict().items()}
    folder = write(tmp_path / "m", {before + n: t for n, t in tensors.items()}, config)
    with pytest.raises(NothingAnalysable, match=r"\(out, in\).*nanoGPT"):
        open_checkpoint(folder)
    # The advice, followed.
    tensors = {n: t.T if n.endswith(_CONV1D) else t for n, t in tensors.items()}
    expected = signature(write(tmp_path / "gpt2", model.state_dict(), model.config.to_dict()))
    config["activation_function"] = model.config.activation_function
    config["layer_norm_epsilon"] = model.config.layer_norm_epsilon
    assert signature(write(tmp_path / "n", tensors, config)) == expected


@pytest.mark.parametrize("attention", ["attn", "qkv"])
@pytest.mark.parametrize("typed", [True, False])
def test_names_of_litgpt(tmp_path, plain, attention, typed):
    tensors, config, _ = plain
    names = {"model.layers": "transformer.h", "self_attn.q_proj": f"attn.{attention}"}
    names |= {"model.embed_tokens": "transformer.wte", "self_attn.o_proj": "attn.proj"}
    found = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = tensor
    with pytest.raises(NothingAnalysable, match=r"as LitGPT does.*convert_from_litgpt"):
        open_checkpoint(write(tmp_path / "m", found, config if typed else None))


def test_tensors_that_save_model_left_out(tmp_path):
    model = tiny_llama(tie_word_embeddings=True)
    model.config.save_pretrained(tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    model.save_pretrained(tmp_path / "plain")
    ours, theirs = (rollout(f, tokens="1,7").document for f in (tmp_path, tmp_path / "plain"))
    assert ours.norms == theirs.norms
    assert signature(tmp_path) == signature(tmp_path / "plain")
