"""Sizes that two sources give must agree: the configuration or metadata, and the tensors.

A checkpoint that contradicts itself is analysed wrongly in silence whichever source is believed, so
it is refused, with both numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ckptforensics.architectures.biases import dropped_biases
from ckptforensics.architectures.known import Known
from ckptforensics.architectures.plan import Architecture
from ckptforensics.architectures.scores import query_and_key
from ckptforensics.errors import FormatError
from ckptforensics.tensors import matrix_shape
from ckptforensics.tensors.containers.gguf import GgufArray

# Keys of GGUF metadata that may hold a number for each layer.
_LISTED = (
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "feed_forward_length",
)


def require_layers(known: Known, said: int | None, stored: frozenset[int]) -> None:
    """FormatError if blocks are missing.

    Parameters
    ----------
    said : number of blocks by the configuration or metadata, None where it does not say
    stored : numbers of the blocks that have tensors, from 0
    """
    if not stored:
        return
    count = max(stored) + 1
    gaps = sorted(set(range(count if said is None else min(count, said))) - stored)
    if gaps:
        raise FormatError(
            f"layer {gaps[0] + 1} has no tensors, though later ones have: a part of the model is "
            "missing",
            path=known.path.parent if not known.gguf else known.path,
            hint="fetch all of its files",
        )
    if said is not None and said > count:
        raise _other_count(known, said, count, "fetch all of its files")


def refuse_more_layers(known: Known, said: int | None, stored: frozenset[int]) -> None:
    """FormatError if more blocks are stored than are said; parameters as `require_layers`."""
    count = max(stored, default=-1) + 1
    if said is not None and said < count:
        hint = "give the files and the configuration of one model"
        raise _other_count(known, said, count, hint)


def _other_count(known: Known, said: int, count: int, hint: str) -> FormatError:
    where = "the metadata says" if known.gguf else "the configuration says"
    told = f"{where} {said} layers, and the files hold {count}"
    return FormatError(told, path=known.path, hint=hint)


def require_agreement(known: Known, architecture: Architecture) -> None:
    """FormatError if heads, FFN widths, biases, vocabulary or begin token contradict each other."""
    for told in _contradictions(known, architecture):
        raise FormatError(
            told,
            path=known.path,
            hint="the metadata is wrong or the file damaged"
            if known.gguf
            else "correct config.json, or name another with --config",
        )


def _contradictions(known: Known, architecture: Architecture) -> Iterator[str]:
    if known.gguf:
        yield from _lists(known, architecture)
        yield from _experts(known, architecture)
    for number, plan in enumerate(architecture.layers):
        if plan.gap is None:
            yield from _heads(known, architecture, number)
    yield from _ffn_widths(known, architecture)
    if architecture.source == "config" and architecture.family.norm.kind == "rms":
        yield from _norm_biases(architecture)
    yield from dropped_biases(known, architecture.layers)
    embedding = architecture.embedding
    if embedding is None:
        return
    info = known.store.info(embedding.tokens)
    rows = matrix_shape(info)[1]
    said = known.value("vocab_size", "vocab_size")
    # An adapter may bring more rows than its base's configuration says.
    if type(said) is int and said != rows and not info.path.name.startswith("adapter_model"):
        yield f"{embedding.tokens} has {rows:,} rows, and vocab_size is {said:,}"
    bos = architecture.bos_token_id
    if bos is not None and bos >= rows:
        yield f"the begin-of-sequence token is {bos:,}, outside the {rows:,} of the vocabulary"


def _lists(known: Known, architecture: Architecture) -> Iterator[str]:
    """Lists of one number for each layer that are longer or shorter than there are layers."""
    said = known.value(None, "block_count")
    count = said if type(said) is int else len(architecture.layers)
    for key in _LISTED:
        value = known.value(None, key)
        if isinstance(value, GgufArray) and value.length != count:
            yield f"{key} lists {value.length:,} numbers for {count} layers"


def _heads(known: Known, architecture: Architecture, number: int) -> Iterator[str]:
    """Contradictions about the heads of one block, counted from 0."""
    plan, sizes = architecture.layers[number], architecture.sizes
    value = plan.refs.get("value")
    if value is None or "latent" in plan.refs or not sizes.num_heads or value.transposed:
        return
    width = known.at_layer("head_dim", "attention.value_length", number)
    if type(width) is int and width != sizes.head_dim:
        yield (
            f"heads are {width} wide by the configuration, and {sizes.head_dim} by "
            f"{value.weight} with {sizes.num_kv_heads} key-value heads"
        )
    heads = known.at_layer("num_key_value_heads", "attention.head_count_kv", number)
    if type(heads) is int and heads != sizes.num_kv_heads:
        yield (
            f"there are {heads} key-value heads by the configuration, and {sizes.num_kv_heads} of "
            f"width {sizes.head_dim} in {value.weight}"
        )
    key_width = known.at_layer(None, "attention.key_length", number)
    if value.ranges is not None:
        if type(key_width) is int and key_width != sizes.head_dim:
            yield f"keys are {key_width} wide by key_length, and {sizes.head_dim} in {value.weight}"
        return
    names = query_and_key(value.weight) or ()
    counts = (sizes.num_heads, sizes.num_kv_heads)
    for tensor, heads, of_keys in zip(names, counts, (False, True), strict=False):
        if tensor in known.store:
            rows = matrix_shape(known.store.info(tensor))[1]
            if rows % heads:
                yield f"{tensor} has {rows:,} rows, which do not part into {heads} heads"
            # Queries may carry a gate.
            elif of_keys and type(key_width) is int and rows != key_width * heads:
                yield (
                    f"keys are {key_width} wide by key_length, and {rows // heads} in {tensor} "
                    f"with {heads} key-value heads"
                )


def _experts(known: Known, architecture: Architecture) -> Iterator[str]:
    """Experts in the metadata of a model that has none; one is what a plain FFN may be called."""
    said = known.value(None, "expert_count")
    if type(said) is int and said > 1 and not any(plan.experts for plan in architecture.layers):
        yield f"expert_count is {said}, and no layer has experts"


def _ffn_widths(known: Known, architecture: Architecture) -> Iterator[str]:
    """Widths of FFNs that the configuration gives nowhere, though it gives one.

    Experts, dense layers between them and layers of other widths have numbers of their own in it.
    """
    if architecture.family.config.get("ffn_width") == ():
        return
    key = "feed_forward_length" if known.gguf else "intermediate_size"
    numbers = set(_numbers(known.store.metadata if known.gguf else known.whole_config))
    for number, plan in enumerate(architecture.layers):
        said = known.get(architecture.family, "ffn_width")
        if isinstance(said, GgufArray):
            said = known.at_layer(None, key, number)
        refs = plan.experts[0] if plan.experts else plan.refs
        down = refs.get("expert_down") or refs.get("down")
        if type(said) is not int or down is None or down.expert is not None:
            continue
        info = known.store.info(down.weight)
        if len(info.shape) != 2:
            continue
        width = info.shape[0 if down.transposed and not info.oriented else 1]
        if width not in numbers | {said}:
            yield f"{down.weight} takes {width:,} units, and {key} is {said:,}"


def _numbers(value: object) -> Iterator[int]:
    """All whole numbers in a configuration."""
    if type(value) is int:
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)


def _norm_biases(architecture: Architecture) -> Iterator[str]:
    """Biases of norms in a family whose norms have none."""
    for plan in architecture.layers:
        for role, ref in plan.refs.items():
            if role.endswith("_norm") and ref.bias is not None:
                yield (
                    f"{ref.bias} is stored, and norms of the family '{architecture.family.name}' "
                    "have no biases: transformers would not read it"
                )
