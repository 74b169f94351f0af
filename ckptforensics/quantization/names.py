"""The names of linear modules in transformers' tree and in GGUF files, for any checkpoint."""

from __future__ import annotations

from ckptforensics.architectures import WeightRef
from ckptforensics.architectures.schema import Layout, Role
from ckptforensics.checkpoint import Checkpoint


def module_name(checkpoint: Checkpoint, tensor: str, layer: int, expert: int | None) -> str:
    """The module of a stored weight in transformers' tree.

    That is the tensor's name without `.weight`; of a GGUF file, the name that the family's files
    have in transformers' convention. An expert of a stacked tensor has its number at the end.

    Parameters
    ----------
    layer : number from 1
    expert : on the tensor's first axis, None for a tensor of its own
    """
    hf = checkpoint.architecture.family.hf
    stem = tensor.removesuffix(".weight")
    if checkpoint.source.container == "gguf":
        return _name_in(hf, *_role(checkpoint, tensor, layer, expert), layer) or stem
    name = _before(checkpoint, hf, tensor) + stem
    return name if expert is None else f"{name}.{expert}"


def gguf_name(checkpoint: Checkpoint, tensor: str, layer: int, expert: int | None) -> str | None:
    """The tensor of a GGUF file that has a stored weight, without `.weight`.

    It may hold all experts of a layer. None where the family has no GGUF layout.
    """
    if checkpoint.source.container == "gguf":
        return tensor.removesuffix(".weight")
    gguf = checkpoint.architecture.family.gguf
    if gguf is None:
        return None
    return _name_in(gguf, *_role(checkpoint, tensor, layer, expert), layer, numbered=False)


def _role(
    checkpoint: Checkpoint, tensor: str, layer: int, expert: int | None
) -> tuple[Role | None, int | None]:
    """The first role that the tensor has in the layer, and the expert it is of."""
    plan = checkpoint.architecture.layers[layer - 1]

    def of(refs: tuple[tuple[Role, WeightRef], ...]) -> Role | None:
        return next((r for r, ref in refs if ref.weight == tensor and ref.expert == expert), None)

    if (role := of(tuple(plan.refs.items()))) is not None:
        return role, None
    for number, refs in enumerate(plan.experts):
        if (role := of(tuple(refs.items()))) is not None:
            return role, number
    return None, None


def _name_in(
    layout: Layout, role: Role | None, expert: int | None, layer: int, *, numbered: bool = True
) -> str | None:
    """The role's name in a layout; None where it has none."""
    spec = None if role is None else layout.tensors.get(role)
    if spec is None:
        return None
    name = layout.prefixes[0] + layout.block + spec.name[0]
    if numbered and expert is not None and "{expert}" not in name:
        name += ".{expert}"
    return name.replace("{layer}", str(layer - 1)).replace("{expert}", str(expert))


def _before(checkpoint: Checkpoint, hf: Layout, tensor: str) -> str:
    """What a causal model has before the names of its base, where the file leaves it out.

    GPT-2's own files say `h.0`, and the module is `transformer.h.0`.
    """
    classes = (checkpoint.source.config or {}).get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else ""
    headed = isinstance(first, str) and first.endswith(("ForCausalLM", "LMHeadModel"))
    named = any(tensor.startswith(prefix) for prefix in hf.prefixes if prefix)
    return hf.prefixes[0] if headed and not named else ""
