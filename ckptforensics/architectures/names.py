"""The names of a layout as a checkpoint has them."""

from __future__ import annotations

import re
from typing import Any

from ckptforensics.architectures.schema import Layout, TensorSpec
from ckptforensics.tensors import TensorReader


def as_stored(layout: Layout, store: TensorReader) -> Layout:
    """The layout with that form of each weight for which the checkpoint has tensors."""
    chosen = {
        role: next((form for form in spec.forms() if is_stored(layout, form, store)), spec)
        for role, spec in layout.tensors.items()
        if spec.otherwise is not None
    }
    return layout.model_copy(update={"tensors": {**layout.tensors, **chosen}})


def is_stored(layout: Layout, form: TensorSpec, store: TensorReader) -> bool:
    """Whether any block, behind any prefix, has a tensor of this form."""
    counted = {"{layer}": r"\d+", "{expert}": r"\d+"}
    for name in form.name:
        parts = re.split(r"(\{layer\}|\{expert\})", layout.block + name + form.suffix)
        pattern = re.compile("".join(counted.get(part, re.escape(part)) for part in parts) + "$")
        if any(pattern.search(stored) for stored in store):
            return True
    return False


def as_old(layout: Layout, store: TensorReader) -> Layout:
    """The layout with the old names of gains and biases, if the checkpoint has these."""
    old = layout.old_norm_suffixes
    if old is None or not any(name.endswith(old[0]) for name in store):
        return layout
    tensors = {
        role: spec.model_copy(update={"suffix": old[0], "bias_suffix": old[1]})
        if role.endswith("_norm")
        else spec
        for role, spec in layout.tensors.items()
    }
    update: dict[str, Any] = {"tensors": tensors}
    if layout.embedding is not None:
        suffixes = {"norm_suffix": old[0], "norm_bias_suffix": old[1]}
        update["embedding"] = layout.embedding.model_copy(update=suffixes)
    return layout.model_copy(update=update)


def at_layer(layout: Layout, layer: int | str) -> Layout:
    """The layout with the layer's number in every name that stands for all layers."""
    if "{layer}" in layout.block:
        return layout.model_copy(update={"block": layout.block.replace("{layer}", str(layer))})
    tensors = {
        role: spec.model_copy(
            update={"name": tuple(n.replace("{layer}", str(layer)) for n in spec.name)}
        )
        for role, spec in layout.tensors.items()
    }
    return layout.model_copy(update={"tensors": tensors})


def block_prefixes(layout: Layout, prefix: str, layer: int) -> tuple[str, ...]:
    """What the names of all tensors of a block begin with: one prefix, or several."""
    if "{layer}" in layout.block:
        return (prefix + layout.block.replace("{layer}", str(layer)),)
    begins = (n.partition("{layer}")[0] for spec in layout.tensors.values() for n in spec.name)
    return tuple(dict.fromkeys(f"{prefix}{layout.block}{begin}{layer}." for begin in begins))


def find_prefix(layout: Layout, store: TensorReader) -> str | None:
    """The first prefix under which some block has every weight the layout requires."""
    required = [spec for spec in layout.tensors.values() if not spec.optional]
    if "{layer}" not in layout.block:
        required = [s for s in at_layer(layout, 0).tensors.values() if not s.optional]
        blocks_at = {prefix: prefix + layout.block for prefix in layout.prefixes}
        fit = (p for p, b in blocks_at.items() if any(find(b, s, store) for s in required))
        return next(fit, None)
    for prefix in layout.prefixes:
        begin, _, end = (prefix + layout.block).partition("{layer}")
        blocks = {
            begin + name[len(begin) :].split(end, 1)[0] + end
            for name in store
            if name.startswith(begin) and end in name[len(begin) :]
        }
        # All in one block; or, in a damaged checkpoint, each in some block: what a block lacks
        # is then reported by name.
        if blocks and all(any(find(b, spec, store) for b in blocks) for spec in required):
            return prefix
    return None


def find(block: str, spec: TensorSpec, store: TensorReader, expert: int = 0) -> str | None:
    """Full name, without suffix, of the first of the spec's names that exists."""
    for name in spec.name:
        full = block + name.replace("{expert}", str(expert))
        if full + spec.suffix in store:
            return full
    return None
