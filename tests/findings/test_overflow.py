"""What no number can tell is null or an error that names the tensor, and nothing else is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.errors import NotFinite
from ckptforensics.results import LayersDocument, ModelRecord
from tests.support.containers import assert_one_error, run
from tests.support.models import save, tiny_llama

BLOCK = "model.layers.1."
COMMANDS = ("inspect", "sign", "layers", "norms")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    return save(tiny_llama(**sizes, attention_bias=False, mlp_bias=False), tmp_path / "model")


def change(path: Path, act: Any, *names: str) -> None:
    tensors = load_file(path / "model.safetensors")
    for name, tensor in tensors.items():
        if any(part in name for part in names):
            act(tensor)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def first(value: float) -> Any:
    return lambda t: t.view(-1)[:1].fill_(value)


def test_ordinary_tokens_that_are_zero(model, capsys):
    """All but the begin token: its norm stands out, by no number."""
    begin = 5

    def unused(table: torch.Tensor) -> None:
        kept = table[begin].clone()
        table.zero_()
        table[begin] = kept

    change(model, unused, "embed_tokens")
    found = ckptforensics.find_layers(model).begin_token
    assert found is not None
    assert (found.growth, found.largest_ratio) == ("abrupt", None)
    assert set(found.ordinary) == {0.0}
    ran = run(capsys, "layers", model)
    assert "beside ordinary tokens whose median is 0" in ran.out
    assert "inf" not in ran.out
    document = ckptforensics.find_layers(model)
    assert isinstance(document, LayersDocument)
    assert all(row.rollout_ratio is None for row in document.layers)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [("mlp.down_proj", 1e38), ("mlp.up_proj", 1e38), ("mlp.gate_proj", 1e30),
     ("post_attention_layernorm", 1e30), ("self_attn.o_proj", 3e38), ("self_attn.v_proj", 1e38)],
)  # fmt: skip
def test_weights_that_are_too_large(command, name, value, model, capsys):
    """A result with finite numbers, or one line that names the tensor; NumPy says nothing."""
    tensor = f"{BLOCK}{name}.weight"
    change(model, first(value), tensor)
    ran = run(capsys, command, model, "-q", "--format", "json")
    if ran.code:
        assert_one_error(ran, 2, tensor, "layer 2 (model.layers.1)", "float32")
    else:
        assert ran.err == ""
        assert "Infinity" not in ran.out
        assert "NaN" not in ran.out


def test_embeddings_that_are_too_large(model):
    change(model, lambda t: t.fill_(1e38), "embed_tokens")
    with pytest.raises(NotFinite, match="overflows float32") as caught:
        ckptforensics.sign(model)
    assert caught.value.tensor == "model.embed_tokens.weight"


def test_answers_are_of_the_right_size(model):
    """Norms of what float32 holds, though not its square."""
    change(model, lambda t: t.mul_(1e30), f"{BLOCK}mlp.down_proj")
    changed = ckptforensics.find_layers(model).layers[1].trigger_norm
    change(model, lambda t: t.mul_(1e-30), f"{BLOCK}mlp.down_proj")
    sound = ckptforensics.find_layers(model).layers[1].trigger_norm
    assert changed == pytest.approx(1e30 * sound, rel=1e-4)


def test_layers_none_of_which_adds_anything(model, capsys):
    change(model, lambda t: t.zero_(), "o_proj", "down_proj")
    signature = ckptforensics.sign(model).document
    assert (signature.direction.source, signature.direction.top) == ("none", ())
    assert signature.fingerprint is None
    assert ckptforensics.find_layers(model).direction == signature.direction
    for command in COMMANDS:
        ran = run(capsys, command, model, "--strict")
        assert ran.code == 2
        assert "--strict: no layer adds anything" in ran.err
        said = "direction     none: no layer adds anything" in ran.out
        assert said == (command in ("sign", "layers"))


def test_one_layer_that_adds_something(model, capsys):
    """Three identities may be meant, and the others have a direction."""
    deep = save(tiny_llama(num_hidden_layers=5, attention_bias=False, mlp_bias=False), model / "d")
    idle = [f"layers.{i}.{m}" for i in (0, 1, 3) for m in ("self_attn.o_proj", "mlp.down_proj")]
    change(deep, lambda t: t.zero_(), *idle)
    found = ckptforensics.sign(deep).document
    assert (found.direction.source, found.fingerprint is None) == ("spectrum", False)
    assert _identities(found.model) == [1, 2, 4]
    assert run(capsys, "sign", deep, "--strict").code == 0
    change(deep, lambda t: t.zero_(), "layers.4.self_attn.o_proj", "layers.4.mlp.down_proj")
    assert "--strict: 4 findings of damage" in run(capsys, "sign", deep, "--strict").err


def _identities(model: ModelRecord) -> list[int | None]:
    return [d.layer for d in model.damage if d.what == "identity"]
