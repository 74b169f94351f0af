"""What the configurations of two models say that changes the function and is in no weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ckptforensics.forward import activation
from ckptforensics.lineage.correspondence.alignment import find_alignment
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair

# A setting's name here, its keys in Hugging Face configurations, and the end of its GGUF key; None
# where GGUF has another form of it.
_SETTINGS: tuple[tuple[str, tuple[str, ...], str | None], ...] = (
    (
        "RoPE base",
        ("rope_theta", "rotary_emb_base", "rope_parameters.rope_theta"),
        "rope.freq_base",
    ),
    ("RoPE scaling", ("rope_scaling", "rope_parameters"), None),
    ("share of rotated coordinates", ("partial_rotary_factor", "rotary_pct"), None),
    ("sliding window", ("sliding_window",), "attention.sliding_window"),
    ("kinds of attention", ("layer_types",), None),
    ("bound on scores", ("attn_logit_softcapping",), "attn_logit_softcapping"),
    ("bound on logits", ("final_logit_softcapping",), "final_logit_softcapping"),
    ("factor on scores", ("attention_multiplier", "query_pre_attn_scalar"), None),
    ("factor on logits", ("logits_scaling", "logit_scale"), "logit_scale"),
    ("ALiBi", ("alibi",), None),
)
# A scale of the residual stream is measured, so that epsilons agree to about this.
_EPSILON_SLACK = 0.01
# What a setting is where a file does not name it, whatever the family.
_SILENT: Mapping[str, tuple[Any, ...]] = {
    "RoPE base": (None, 10_000.0),
    "RoPE scaling": (None,),
    "kinds of attention": (None,),
    "sliding window": (None, 0, False),
    "bound on scores": (None, 0),
    "bound on logits": (None, 0),
    "ALiBi": (None, False),
    "share of rotated coordinates": (None, 1, 1.0),
    "factor on logits": (None, 1, 1.0),
}


def differing_settings(pair: Pair) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Settings that differ, and those that only one model states, each in words."""
    differ, unknown = [], []
    a, b = (_of_architecture(model) for model in pair.models)
    differ += [f"{n}: {_short(a[n])} and {_short(b[n])}" for n in a if a[n] != b[n]]
    epsilons = [model.weights.architecture.eps for model in pair.models]
    # A larger residual stream needs a larger epsilon for the same norm.
    expected = epsilons[0] * pair.once(find_alignment).scale ** 2
    if not math.isclose(expected, epsilons[1], rel_tol=_EPSILON_SLACK):
        differ.append(f"epsilon of the norms: {epsilons[0]:.4g} and {epsilons[1]:.4g}")
    stated = [_stated(model) for model in pair.models]
    same_form = all(m.weights.source.config for m in pair.models) or not any(
        m.weights.source.config for m in pair.models
    )
    for name, _, gguf in _SETTINGS:
        if gguf is None and not same_form:
            continue
        one, other = (values.get(name) for values in stated)
        if one == other or all(v in _SILENT.get(name, ()) for v in (one, other)):
            continue
        if (one is None or other is None) and name not in _SILENT:
            silent = "A" if one is None else "B"
            told = _short(other if one is None else one)
            unknown.append(f"{name} ({told}, and {silent} does not say)")
        else:
            differ.append(f"{name}: {_short(one)} and {_short(other)}")
    return tuple(differ), tuple(unknown)


def _of_architecture(model: Model) -> dict[str, Any]:
    """Settings that are read whatever the form of the configuration."""
    found = model.weights.architecture
    return {
        "activation": activation(found.activation).name,
        "attention heads": found.sizes.num_heads,
        "residual branches": found.residual,
        "norms stand": found.norm_position,
        "factor on embeddings": round(float(found.embedding_scale), 4),
        "factor on attention": found.attention_scale,
        "factor on FFNs": found.ffn_scale,
        "factor on gates": found.gate_scale,
        "bound on values": found.value_clip,
        "routing": found.routing,
    }


def _stated(model: Model) -> dict[str, Any]:
    config = model.weights.source.config
    if config is None:
        metadata = model.weights.store.metadata
        family = metadata.get("general.architecture")
        ends = {name: f"{family}.{end}" for name, _, end in _SETTINGS if end is not None}
        return {name: _plain(metadata[key]) for name, key in ends.items() if key in metadata}
    inner = config.get("text_config")
    places = [config, *([inner] if isinstance(inner, Mapping) else [])]
    found: dict[str, Any] = {}
    for name, keys, _ in _SETTINGS:
        for place in places:
            for key in keys:
                value = _at(place, key)
                if value is not None and found.get(name) is None:
                    found[name] = _plain(value)
    return found


def _at(place: Mapping[str, Any], key: str) -> Any:
    first, _, rest = key.partition(".")
    value = place.get(first)
    return _at(value, rest) if rest and isinstance(value, Mapping) else None if rest else value


def _plain(value: Any) -> Any:
    """A value in the form in which two are compared; None where it says the usual."""
    if type(value) in (int, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):  # of RoPE, whose base is a setting of its own
        kind = value.get("rope_type", value.get("type", "default"))
        return None if kind == "default" else {k: v for k, v in value.items() if k != "rope_theta"}
    if isinstance(value, list):
        return None if set(map(str, value)) == {"full_attention"} else value
    return value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
