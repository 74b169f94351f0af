"""What the configurations of two models say that changes the function and is in no weight."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from importlib import resources
from typing import Any

from ckptforensics.errors import CkptError
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
    (
        "share of rotated coordinates",
        ("partial_rotary_factor", "rotary_pct", "rope_parameters.partial_rotary_factor"),
        None,
    ),
    ("sliding window", ("sliding_window",), "attention.sliding_window"),
    ("kinds of attention", ("layer_types",), None),
    ("bound on scores", ("attn_logit_softcapping",), "attn_logit_softcapping"),
    ("bound on logits", ("final_logit_softcapping",), "final_logit_softcapping"),
    ("factor on scores", ("attention_multiplier", "query_pre_attn_scalar"), None),
    ("factor on logits", ("logits_scaling", "logit_scale"), "logit_scale"),
    ("ALiBi", ("alibi",), None),
)
# Keys that say nothing of the function, or whose word is looked at elsewhere: in the tensors, in
# the architecture, or in the settings above. Any other key is told where its values differ.
_INERT = "inert_settings.txt"
_TRAINING = ("dropout", "pdrop", "_drop", "drop_rate", "layerdrop")
# What a key is where a configuration leaves it out; of other keys that one model leaves out nothing
# is said, since every version of transformers writes more of them.
_DEFAULTS: Mapping[str, Any] = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "_remove_final_layer_norm": False,
    "use_bidirectional_attention": False,
    "is_decoder": False,
    "no_rope_layers": None,
    "no_rope_layer_interval": None,
    "attn_config.softmax_scale": None,
    "attn_config.alibi": False,
    "attn_config.clip_qkv": None,
    "rope_local_base_freq": None,
    "rope_interleave": True,
    "use_sliding_window": False,
    "use_qk_norm": None,
}
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


def differing_settings(
    pair: Pair, *, one_function: bool = True
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Settings that differ, and those that only one model states, each in words.

    Parameters
    ----------
    one_function : the models may be one function, and the scale between their residual streams is
        known; of others it is an estimate, which no epsilon is judged by
    """
    differ, unknown = [], []
    a, b = (_of_architecture(model) for model in pair.models)
    differ += [_told(n, a.get(n), b.get(n)) for n in {**a, **b} if a.get(n) != b.get(n)]
    epsilons = [model.weights.architecture.eps for model in pair.models]
    # A larger residual stream needs a larger epsilon for the same norm.
    scale = pair.once(find_alignment).scale
    known = one_function or scale == 1
    if known and not math.isclose(epsilons[0] * scale**2, epsilons[1], rel_tol=_EPSILON_SLACK):
        if epsilons[0] == epsilons[1]:
            differ.append(
                f"epsilon of the norms: {epsilons[0]:.4g} in both, though the residual stream of B "
                f"is {scale:.4g} times A's"
            )
        else:
            differ.append(_told("epsilon of the norms", *epsilons))
    stated = [_stated(model) for model in pair.models]
    configs = [model.weights.source.config for model in pair.models]
    same_form = all(configs) or not any(configs)
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
            differ.append(_told(name, one, other))
    if configs[0] is not None and configs[1] is not None:
        differ += _other_keys(configs[0], configs[1])
        differ += _heads_differ(pair)
    differ += pair.once(_tokenizers_differ)
    return tuple(differ), tuple(unknown)


def _other_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Keys of configurations whose values differ and which nothing else here looks at."""
    one, other = dict(_flat(a)), dict(_flat(b))
    for key in sorted({**one, **other}):
        x, y = (values.get(key, _DEFAULTS.get(key)) for values in (one, other))
        both = key in one and key in other
        if x != y and (both or key in _DEFAULTS):
            yield _told(key, x, y)


def _flat(config: Mapping[str, Any], begin: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots for nested objects, and values; without those that are looked at elsewhere."""
    inert = _inert()
    for key, value in config.items():
        if key == "text_config" and isinstance(value, Mapping):
            yield from _flat(value, begin)
        elif key in inert or any(word in key for word in _TRAINING):
            continue
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{begin}{key}.")
        else:
            yield begin + key, _plain(value)


def _tokenizers_differ(pair: Pair) -> tuple[str, ...]:
    """Whether the models read the same tokens out of a text, where both have a vocabulary."""
    try:
        a, b = (model.vocabulary for model in pair.models)
    except CkptError:  # told where the tokens are matched
        return ()
    if a is None or b is None or a == b:
        return ()
    moved = [text for text, token in a.items() if b.get(text) != token]
    moved += [text for text in b if text not in a]
    text = moved[0]
    ids = " and ".join(str(words.get(text, "none")) for words in (a, b))
    return (f"{len(moved):,} tokens of the tokenizers, such as {text!r}, id {ids}",)


@cache
def _inert() -> frozenset[str]:
    file = resources.files("ckptforensics.lineage") / _INERT
    return frozenset(file.read_text(encoding="utf-8").split())


def _heads_differ(pair: Pair) -> Iterator[str]:
    """Whether one model's output head is drawn at random when it is loaded: none is stored."""
    for name, model in zip("AB", pair.models, strict=True):
        config = model.weights.source.config or {}
        inner = config.get("text_config")
        place = inner if isinstance(inner, Mapping) and "tie_word_embeddings" in inner else config
        stored = any("lm_head" in tensor or "embed_out" in tensor for tensor in model.weights.store)
        if place.get("tie_word_embeddings") is False and not stored:
            yield f"output head: {name} says that it is not the embeddings, and stores none"


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
        **{
            f"routing, {field.name.replace('_', ' ')}": getattr(found.routing, field.name)
            for field in (fields(found.routing) if found.routing is not None else ())
        },
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
        if any(isinstance(part, Mapping) for part in value.values()):  # one for each kind of layer
            return {k: dict(v) if isinstance(v, Mapping) else v for k, v in value.items()}
        kind = value.get("rope_type", value.get("type", "default"))
        apart = ("rope_theta", "partial_rotary_factor")
        return None if kind == "default" else {k: v for k, v in value.items() if k not in apart}
    if isinstance(value, list):
        return None if set(map(str, value)) == {"full_attention"} else value
    return value


def _told(name: str, one: Any, other: Any) -> str:
    """Two values of a setting in words; of objects what differs in them."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        return "; ".join(_told(f"{name}, {key}", one.get(key), other.get(key)) for key in keys)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        places = [i for i, (x, y) in enumerate(zip(one, other, strict=True)) if x != y]
        first = places[0]
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        return f"{name}, entry {first}{more}: {_short(one[first])} and {_short(other[first])}"
    return f"{name}: {_short(one)} and {_short(other)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
