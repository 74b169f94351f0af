"""The numbered stacks of blocks that tensor names tell of, and which is the language model's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ckptforensics.tensors import TensorReader

_BLOCK = re.compile(r"(?P<before>(?:.*?\.)?)(?P<layer>\d+)\.(?P<rest>.+)")
_TOKENS = re.compile(r"emb|wte", re.IGNORECASE)
_OTHER_EMBEDDINGS = re.compile(r"pos|wpe|type|patch|rope|rotary", re.IGNORECASE)
# Lists of single layers are numbered too; the smallest block has values, output, up and down.
_FEWEST_TENSORS = 4


@dataclass
class Stack:
    """Blocks whose names differ by their number only.

    Attributes
    ----------
    before : what precedes the number in every name
    layers : the numbers
    names : tensors of block 0, after its number
    distance : how many parts of `before` follow those it has in common with the nearest token
        embeddings; many if there are none
    """

    before: str
    layers: set[int] = field(default_factory=set)
    names: list[str] = field(default_factory=list)
    distance: int = 1 << 20

    @property
    def block(self) -> str:
        """Prefix of block 0."""
        return f"{self.before}0."

    @property
    def rank(self) -> tuple[int, int, int]:
        """The lowest is the language model's: by its token embeddings, its blocks, its name."""
        return self.distance, -len(self.layers), self.before.count(".")


def find_stacks(store: TensorReader) -> list[Stack]:
    """All stacks with a block 0, the language model's first."""
    found: dict[str, Stack] = {}
    tokens = []
    for name in store:
        match = _BLOCK.fullmatch(name)
        if match is None:
            is_tokens = _TOKENS.search(name) and not _OTHER_EMBEDDINGS.search(name)
            if is_tokens and len(store.info(name).shape) == 2:
                tokens.append(name)
            continue
        stack = found.setdefault(match["before"], Stack(match["before"]))
        stack.layers.add(int(match["layer"]))
        if match["layer"] == "0":
            stack.names.append(match["rest"])
    stacks = [stack for stack in found.values() if stack.names]
    stacks = [s for s in stacks if len(s.names) >= _FEWEST_TENSORS] or stacks
    for stack in stacks:
        stack.distance = min((_distance(stack.before, t) for t in tokens), default=stack.distance)
    return sorted(stacks, key=lambda stack: (stack.rank, -len(stack.names), stack.before))


def equals(stacks: list[Stack]) -> list[Stack]:
    """Those that may be the language model as well as the first of them."""
    return [stack for stack in stacks if stack.rank == stacks[0].rank]


def copies_of(block: str, tokens: str, store: TensorReader) -> list[Stack]:
    """Stacks of further models, such as a running mean of the weights: same names, own embeddings.

    Parameters
    ----------
    block : prefix of block 0 of the model that is read
    tokens : its token embeddings
    """
    end = "." + ".".join(tokens.split(".")[-2:])
    shape = store.info(tokens).shape
    roots = tuple(
        name.removesuffix(end) + "."
        for name in store
        if name != tokens and name.endswith(end) and store.info(name).shape == shape
    )
    stacks = find_stacks(store) if roots else []
    own = next((stack for stack in stacks if stack.block == block), None)
    return [
        stack
        for stack in stacks
        if own is not None
        and stack is not own
        and stack.before.startswith(roots)
        and stack.layers == own.layers
        and set(stack.names) == set(own.names)
    ]


def shown(stacks: Iterable[Stack]) -> str:
    """The stacks by name and size, for a message."""
    return ", ".join(f"'{stack.before}' ({len(stack.layers)} blocks)" for stack in stacks)


def _distance(before: str, tokens: str) -> int:
    parts, others = before.split(".")[:-1], tokens.split(".")
    common = 0
    while common < min(len(parts), len(others)) and parts[common] == others[common]:
        common += 1
    return len(parts) - common
