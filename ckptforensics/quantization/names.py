"""The names of linear modules in transformers' tree and in GGUF, of any checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckptforensics.architectures.schema import Layout, Role, TensorSpec
from ckptforensics.checkpoint import Checkpoint

_WEIGHT = re.compile(r"\.weight$")


def module_name(checkpoint: Checkpoint, tensor: str, layer: int, expert: int | None) -> str:
    """The module of a stored weight in transformers' tree: its name without `.weight`.

    A GGUF file's is that of the family's layout; an expert of a stacked tensor has its number.

    Parameters
    ----------
    layer : number from 1
    expert : on the tensor's first axis, None for a tensor of its own
    """
    hf = checkpoint.architecture.family.hf
    if checkpoint.source.container == "gguf":
        spec = _spec_of(checkpoint, tensor, layer, expert)
        if spec is None:
            return _WEIGHT.sub("", tensor)
        return hf.prefixes[0] + _filled(hf, spec, layer, expert)
    name = _WEIGHT.sub("", tensor)
    name = _model_prefix(checkpoint, hf, tensor) + name
    return name if expert is None else f"{name}.{expert}"


def gguf_tensor(checkpoint: Checkpoint, tensor: str, layer: int) -> str | None:
    """The stored weight's name in a GGUF file of the model, without `.weight`.

    None where the family has no GGUF layout.
    """
    if checkpoint.source.container == "gguf":
        return _WEIGHT.sub("", tensor)
    gguf = checkpoint.architecture.family.gguf
    role = _role_of(checkpoint, tensor, layer)
    if gguf is None or role is None:
        return None
    spec = gguf.tensors.get(role)
    return None if spec is None else gguf.prefixes[0] + _filled(gguf, spec, layer, 0)


def _filled(layout: Layout, spec: TensorSpec, layer: int, expert: int | None) -> str:
    text = (layout.block + spec.name[0]).replace("{layer}", str(layer - 1))
    if "{expert}" in text or expert is None:
        return text.replace("{expert}", str(expert))
    return f"{text}.{expert}" if spec.stacked and expert is not None else text


def _role_of(checkpoint: Checkpoint, tensor: str, layer: int) -> Role | None:
    plan = checkpoint.architecture.layers[layer - 1]
    for refs in (plan.refs, *plan.experts):
        found: Mapping[Role, object] = {r: ref for r, ref in refs.items() if ref.weight == tensor}
        if found:
            return next(iter(found))
    return None


def _spec_of(
    checkpoint: Checkpoint, tensor: str, layer: int, expert: int | None
) -> TensorSpec | None:
    role = _role_of(checkpoint, tensor, layer)
    return None if role is None else checkpoint.architecture.family.hf.tensors.get(role)


def _model_prefix(checkpoint: Checkpoint, hf: Layout, tensor: str) -> str:
    """What a model for causal language has before its base's names, where the file leaves it out.

    GPT-2's files say `h.0`, and the module is `transformer.h.0`.
    """
    config = checkpoint.source.config or {}
    classes = config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else ""
    headed = isinstance(first, str) and first.endswith(("ForCausalLM", "LMHeadModel"))
    begin = hf.prefixes[0]
    bare = not any(tensor.startswith(prefix) for prefix in hf.prefixes if prefix)
    return begin if headed and bare else ""
