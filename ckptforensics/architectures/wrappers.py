"""What wrappers put into tensor names, taken out again: the names as the family has them.

torch.compile, data parallelism, trainers and PEFT save a model as a part of themselves. Which names
a model has without them is known from the families; what precedes these is a wrapper's, whatever it
is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckptforensics.architectures.known import Known
from ckptforensics.architectures.schema import families
from ckptforensics.architectures.stacks import equals, find_stacks
from ckptforensics.errors import NothingAnalysable
from ckptforensics.tensors import FileReader, TensorReader

# Parts of names, wherever they stand, that are a wrapper's and no model's.
_PARTS = frozenset(
    {
        "_orig_mod",  # torch.compile
        "module",  # DataParallel, DistributedDataParallel, DeepSpeed
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_fpw_module",  # fairscale
        "_forward_module",  # Lightning Fabric
        "base_layer",  # PEFT
    }
)
# Meta's and Mistral's own files: the family has the names of their blocks.
_META = frozenset({"tok_embeddings.weight", "layers.0.attention.wv.weight"})
_META_EMBEDDING = {"tok_embeddings.weight": "embed_tokens.weight"}

_LITGPT = ("transformer.h.0.attn.attn.weight", "transformer.h.0.attn.qkv.weight")


def unwrapped(store: FileReader, config: Mapping[str, Any] | None) -> tuple[FileReader, list[str]]:
    """The tensors under the names that their family gives them, and notes of what was left out.

    Raises
    ------
    NothingAnalysable
        if the names are those of a wrapper that has changed the tensors too.
    """
    known = Known(store, config)
    if known.gguf:
        return store, []
    _refuse_changed(known)
    notes = []
    parts = {part for name in store for part in name.split(".")[:-1]} & _PARTS
    if parts:
        plain = {n: ".".join(p for p in n.split(".") if p not in parts) for n in store}
        if len(set(plain.values())) == len(plain):
            store = store.renamed(plain)
            notes.append(f"tensor names are read without {_quoted(sorted(parts))} in them")
    if set(store) >= _META:
        store = store.renamed({n: _META_EMBEDDING.get(n, n) for n in store})
    before = _wrapper(known, store)
    if before:
        plain = {name: name.removeprefix(before) for name in store}
        if len(set(plain.values())) == len(plain):
            store = store.renamed(plain)
            notes.append(f"tensor names are read without '{before}' before them")
    return store, notes


def _wrapper(known: Known, store: TensorReader) -> str:
    """What precedes the names of the language model, as its family has them."""
    stacks = find_stacks(store)
    family = known.family()
    roots = set(_roots(known, families().values() if family is None else (family,)))
    if not stacks or len(equals(stacks)) > 1 or any(s.before in roots for s in stacks):
        return ""
    before = stacks[0].before
    ends = [root for root in roots if root and before.endswith("." + root)]
    return before.removesuffix(max(ends, key=len)) if ends else ""


def _roots(known: Known, of: Any) -> Iterator[str]:
    """What precedes the number of a block in names of the families."""
    for family in of:
        layout = known.layout(family)
        if layout is not None and "{layer}" in layout.block:
            yield from ((p + layout.block).partition("{layer}")[0] for p in layout.prefixes)


def _refuse_changed(known: Known) -> None:
    for name in known.store:
        parts = name.split(".")
        if "lora_A" in parts or "lora_B" in parts:
            raise NothingAnalysable(
                "an adapter is wrapped around the model and not merged into it",
                path=known.path,
                tensor=name,
                hint="save what PEFT's merge_and_unload() returns",
            )
        if parts[-1].startswith(("flat_param", "_flat_param")):
            raise NothingAnalysable(
                "the weights are flattened into one, as FSDP keeps them",
                path=known.path,
                tensor=name,
                hint="save the model with StateDictType.FULL_STATE_DICT",
            )

        if name.endswith(_LITGPT):
            raise NothingAnalysable(
                "the tensors are named as LitGPT does, which has a configuration of its own",
                path=known.path,
                tensor=name,
                hint="convert them with 'litgpt convert_from_litgpt', and give the result with the "
                "config.json of the model",
            )
        if (changed := _reparametrised(name, known.store)) is not None:
            what, hint = changed
            raise NothingAnalysable(what, path=known.path, tensor=name, hint=hint)


def _reparametrised(name: str, store: TensorReader) -> tuple[str, str] | None:
    """What a tensor is, if PyTorch makes a weight from it and others, and how to save the weight.

    The names are those of torch.nn.utils.
    """
    stem, _, weight = name.rpartition(".")
    beside = stem + "." if stem else ""
    if ".parametrizations." in name:
        return (
            "the weight is made from this by a parametrization of PyTorch",
            "call torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') for each "
            "module that has one, and save again",
        )
    plain, _, part = weight.rpartition("_")
    if part == "g" and f"{beside}{plain}_v" in store:
        return (
            "the weight is stored as lengths and directions of its rows (weight norm)",
            "call torch.nn.utils.remove_weight_norm(module) for each module, and save again",
        )
    if part == "orig" and f"{beside}{plain}_u" in store:
        return (
            "the weight is stored as it is before spectral norm divides it",
            "call torch.nn.utils.remove_spectral_norm(module) for each module, and save again",
        )
    if part == "mask" and (f"{beside}{plain}_orig" in store or name[:-5] in store):
        return (
            "a mask of pruning is stored beside its weight",
            "call torch.nn.utils.prune.remove(module, 'weight') for each module, or multiply each "
            "weight by its mask, and save the weights alone",
        )
    return None


def _quoted(words: list[str]) -> str:
    return " and ".join(f"'{word}'" for word in words)
