"""What names, configuration and gains say of a block that no family claims.

Each statement is applied, or named as a note, or refused: nothing of it is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from ckptforensics.architectures.known import Known
from ckptforensics.architectures.schema import Family, Layout, NormSpec, Scalar
from ckptforensics.errors import CkptError, UnknownFamily

NormKind = Literal["rms", "layer"]

_NORM_BIAS = re.compile(r"(?:.*[._])?(?:\w*norm\w*|ln\w*)\.(?:bias|beta)", re.IGNORECASE)
# Keys of epsilon that name the kind of norm.
_EPSILONS: Mapping[NormKind, tuple[str, ...]] = MappingProxyType(
    {
        "rms": ("rms_norm_eps", "rms_norm_epsilon", "rmsnorm_eps"),
        "layer": ("layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "layernorm_eps"),
    }
)
# GGUF keys of factors, bounds and routing, which each family uses in its own way.
_TELLING = ("embedding_scale", "residual_scale", "attention.clamp_kqv", "expert_count")
# Factors that mean one thing in every model that has them: on the embeddings, on both branches.
_EMBEDDING_FACTORS = (Scalar(key="embedding_multiplier"), Scalar(key="scale_emb"))
# Flags that say that embeddings are multiplied by the root of their width.
_BY_ROOT = ("scale_embedding", "scale_embeddings", "scale_emb_by_sqrt_dim")
_BRANCH_FACTORS = (
    Scalar(key="residual_multiplier"),
    Scalar(key="scale_depth", over="sqrt(num_layers)"),
)
_FACTOR = re.compile(r".*(multiplier|_scale|scale_|scaling)\w*|clip_qkv")
# Factors on scores, on the logits, on positions, or of another component.
_HARMLESS = re.compile(
    r"(attention_multiplier|query_pre_attn_scalar|key_multiplier|lm_head_multiplier)"
    r"|(attn|attention|softmax|qk|logits?|output|rope|rotary|ntk|mrope|image|vision|video|audio|mm)"
    r"_\w*|\w*(logits?|softmax|rope|rotary|init|routed)\w*"
)
# Settings that change where norms stand, with the value that does.
_OTHER_BLOCKS: Mapping[str, bool] = MappingProxyType(
    {
        "apply_residual_connection_post_layernorm": True,
        "do_layer_norm_before": False,
        "parallel_attn": True,
        "parallel_residual": True,
        "use_parallel_residual": True,
    }
)
# Layers whose gains are read; more say no more.
_GAINS_READ = 8
# RMSNorm's gains are trained from 1 and stay positive but for a few; stored minus 1 they are
# trained from 0. In between, or where all are small as LLaMA 1's, neither is sure.
_NEGATIVE, _DOUBTFUL_NEGATIVE = 0.2, 0.02
_NEAR_ZERO, _SMALL = 0.5, 0.3
# Of the gains of Gemma 3 270M none is below 0, of those minus 1 a share of 0.096 is.
_FEW_NEGATIVE = 0.005


def norm_kind(known: Known, names: list[str]) -> tuple[NormKind | None, str]:
    """Kind of the norms and what tells it: biases first, then the name of epsilon."""
    if known.gguf:
        kind = known.gguf_norm()
        return (None if kind is None else "rms" if kind == "rms" else "layer"), "epsilon's key"
    if any(_NORM_BIAS.fullmatch(name) for name in names):
        return "layer", "their biases"
    kinds = {
        kind: key
        for kind, keys in _EPSILONS.items()
        for key in keys
        if known.value(key) is not None
    }
    if len(kinds) == 1:
        return next(iter(kinds.items()))
    return None, ""


def with_norm(family: Family, kind: NormKind) -> Family:
    """The family with another kind of norm."""
    norm = NormSpec.model_validate({**family.norm.model_dump(), "kind": kind})
    return family.model_copy(update={"norm": norm})


def with_factors(known: Known, family: Family) -> Family:
    """The family with the factors of the configuration that it does not apply itself.

    Raises
    ------
    UnknownFamily
        if configuration or metadata tell of arithmetic that names and shapes do not show.
    """
    for key in _TELLING if known.gguf else ():
        if known.value(None, key):
            raise _does_more(known, f"{known.model_type}.{key}")
    if known.gguf:
        return family
    own = {s.key for s in (family.embedding_scale, family.attention_scale, family.ffn_scale)}
    update: dict[str, Scalar] = {}
    for places, factors in (
        (("embedding_scale",), _EMBEDDING_FACTORS),
        (("attention_scale", "ffn_scale"), _BRANCH_FACTORS),
    ):
        said = [f for f in factors if known.value(f.key) is not None and f.key not in own]
        for factor in said[:1]:
            update |= dict.fromkeys(places, factor)
            what = "the embeddings" if len(places) == 1 else "what both branches add"
            known.notes.append(f"{factor.key} of the configuration taken as a factor on {what}")
    if family.embedding_scale == Scalar() and any(known.value(k) is True for k in _BY_ROOT):
        update["embedding_scale"] = Scalar(times="sqrt(hidden_size)")
        known.notes.append("embeddings taken times sqrt(hidden_size), as the configuration says")
    applied = {f.key for f in update.values()} | own | {family.value_clip}
    for key, value in known.config.items():
        number = type(value) in (int, float) and value not in (0, 1)
        if key in applied or not number or _HARMLESS.fullmatch(key):
            continue
        if _FACTOR.fullmatch(key):
            raise _does_more(known, key)
    for key, other in _OTHER_BLOCKS.items():
        if known.value(key) is other and family.residual == "sequential":
            raise _does_more(known, key)
    return family.model_copy(update=update)


def stored_offset(known: Known, family: Family, layout: Layout, num_layers: int) -> float:
    """What is to be added to the stored gains of the norms; a doubt becomes a note.

    Reads the gains of a few layers: the only weights that are read to tell a family.
    """
    told = None if known.gguf else _gains(known, layout, num_layers)
    if told is None:
        return layout.gain_offset
    mean, negative = told
    if negative >= _NEGATIVE and abs(mean) < _NEAR_ZERO:
        if layout.gain_offset == 0 and family.norm.kind == "rms":
            known.notes.append(f"the norms' gains are stored minus 1: their mean is {mean:.2g}")
            return 1.0
        return layout.gain_offset
    if layout.gain_offset == 1 and mean > _NEAR_ZERO and negative < _DOUBTFUL_NEGATIVE:
        known.notes.append(
            f"the norms' gains have the mean {mean:.2g}: taken as they are, not as "
            f"{family.name}'s, which are stored minus 1"
        )
        return 0.0
    if layout.gain_offset == 0 and (abs(mean) < _SMALL or negative >= _DOUBTFUL_NEGATIVE):
        known.notes.append(
            f"the norms' gains have the mean {mean:.2g}: taken as they are, which is wrong if they "
            "are stored minus 1, as Gemma's"
        )
    return layout.gain_offset


def note_doubtful_gains(known: Known, family: Family, layout: Layout, num_layers: int) -> None:
    """Note gains that look converted, or not converted, of a family that stores them minus 1.

    Trained gains are above 0 but for a few, so those minus 1 have many below. The mean tells
    nothing: Gemma 3's, minus 1, grows from 0 to hundreds. Of LayerNorms (Nemotron's) nothing is
    said: transformers starts to train them at 1, as they are stored.
    """
    if family.hf.gain_offset != 1 or family.norm.kind != "rms":
        return
    told = _gains(known, layout, num_layers)
    if told is None:
        return
    mean, negative = told
    if layout.gain_offset == 1 and mean > _NEAR_ZERO and negative < _FEW_NEGATIVE:
        known.notes.append(
            f"the norms' gains have the mean {mean:.2g}, and hardly any is below 0: 1 is added as "
            f"{family.name} does, which is wrong if it was added before"
        )
    if layout.gain_offset == 0 and negative >= _DOUBTFUL_NEGATIVE:
        known.notes.append(
            f"of the norms' gains {negative:.0%} are below 0: taken as they are, which is wrong if "
            f"they are stored minus 1, as {family.name}'s outside GGUF"
        )


def _gains(known: Known, layout: Layout, num_layers: int) -> tuple[float, float] | None:
    """Mean of the stored gains of a few layers, and share below 0; None if they cannot be read."""
    specs = [layout.tensors[r] for r in ("attention_norm", "ffn_norm") if r in layout.tensors]
    layers = sorted({n * num_layers // _GAINS_READ for n in range(_GAINS_READ)})
    names = [
        name
        for layer in layers
        for spec in specs
        if (name := f"{_block(layout, layer)}{spec.name[0]}{spec.suffix}") in known.store
    ]
    if not names:
        return None
    import numpy as np

    try:
        known.store.prefetch(names)
        gains = np.concatenate([known.store.read(name).reshape(-1) for name in names])
    except CkptError:  # reported by what needs these weights
        return None
    if gains.size == 0:
        return None
    return float(gains.mean(dtype=np.float64)), float((gains < 0).mean())


def _block(layout: Layout, layer: int) -> str:
    return layout.prefixes[0] + layout.block.replace("{layer}", str(layer))


def _does_more(known: Known, key: str) -> UnknownFamily:
    return unknown(known, f"'{key}' says that its blocks do more than names can tell")


def unknown(known: Known, why: str) -> UnknownFamily:
    """The refusal of a checkpoint that cannot be inferred."""
    said = f"no family is named '{known.model_type}'" if known.model_type else "no configuration"
    if known.whole_config and not known.model_type:
        said = "the configuration names no model_type"
    return UnknownFamily(
        f"{said}, and {why}",
        path=known.path,
        hint="see docs/families.md for the supported families and how to add one",
    )
