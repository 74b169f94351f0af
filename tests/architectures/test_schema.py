"""Families are validated data: what is misspelled or contradicts itself is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from ckptforensics.architectures.schema import UNUSED_REASONS, families, read_family, unanalysable

FIELDS: dict[str, Any] = {
    "name": "example",
    "description": "one gated FFN",
    "norm": {"kind": "rms", "eps": 1e-5},
    "activation": "silu",
    "hf": {
        "prefixes": ["model.", ""],
        "embedding": "embed_tokens",
        "block": "layers.{layer}.",
        "tensors": {
            "attention_norm": "norm_1",
            "value": "v",
            "output": ["o", {"name": "out", "transposed": True}],
            "ffn_norm": "norm_2",
            "gate": "gate",
            "up": "up",
            "down": "down",
        },
    },
}


def changed(path: str, value: object) -> dict[str, Any]:
    fields = copy.deepcopy(FIELDS)
    *outer, last = path.split("/")
    place = fields
    for key in outer:
        place = place[key]
    place[last] = value
    return fields


def test_short_forms_are_spelled_out():
    layout = read_family(FIELDS).hf
    assert layout.embedding is not None
    assert layout.embedding.tokens == "embed_tokens"
    assert layout.tensors["value"].name == ("v",)
    first, second = layout.tensors["output"].forms()
    assert (first.name, first.transposed) == (("o",), False)
    assert (second.name, second.transposed) == (("out",), True)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("hf/tensors/vlaue", "v", "vlaue"),
        ("hf/tensors/up", {"name": "up", "transpose": True}, "transpose"),
        ("activaton", "gelu", "activaton"),
        ("norm/eps", 0, "eps"),
        ("hf/block", "layers.0.", "layer"),
        ("hf/tensors/router", "router", "moe"),
        ("moe", {"routing": "softmax"}, "moe"),
        ("hf/tensors", {"value": "v"}, "no FFN"),
        ("hf/tensors/ffn_output_gate", "g", "output gate behind a gated FFN"),
        ("hf/unused", {"*.q": "no such reason"}, "unused"),
    ],
)
def test_what_is_wrong_is_refused_and_named(path, value, says):
    with pytest.raises(ValidationError, match=says):
        read_family(changed(path, value))


def test_the_families_are_read_once_and_cannot_be_changed():
    found = families()
    assert families() is found
    with pytest.raises(TypeError):
        found["llama"] = None  # type: ignore[index]
    with pytest.raises(ValidationError):
        found["llama"].activation = "gelu"


def test_reasons_are_sentences_for_people():
    assert all(reason.strip() for reason in UNUSED_REASONS.values())
    names = [name for group in unanalysable().values() for name in group]
    assert len(names) == len(set(names))
    claimed = {name for family in families().values() for name in family.model_types}
    assert claimed.isdisjoint(names)
