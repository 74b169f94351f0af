"""What of a checkpoint is measured, and with what means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptforensics.arrays import Floats
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import UsageError
from ckptforensics.findings.skipped import runs
from ckptforensics.layers import EXPERT_MEMORY, memory_needed
from ckptforensics.results import Signature, Skipped

# Bytes beside the weights: interpreter, libraries, vectors and temporaries.
_BESIDE = 300 << 20


@dataclass(frozen=True)
class Scope:
    """What is measured, and with what means.

    Attributes
    ----------
    layers : numbers from 1, in increasing order; None for all of which something is analysed
    near : signature of a relative, whose directions the search begins with; what it finds is
        decided by the residuals as ever
    memory : bytes that may be used, about; None for 4 GiB of experts beside a block
    """

    layers: tuple[int, ...] | None = None
    near: Signature | None = None
    memory: int | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is left out, and nothing but the checkpoint decides the result."""
        return self.layers is None and self.near is None

    def wanted(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        """The layers to measure; UsageError if one is not in the model or not analysed."""
        analysed = checkpoint.architecture.analysed
        if self.layers is None:
            return tuple(analysed)
        for layer in self.layers:
            if layer not in analysed:
                raise UsageError(
                    f"layer {layer} is not among those that are analysed ({runs(analysed)})",
                    path=checkpoint.source.path,
                    hint="change --layers",
                )
        return tuple(sorted(set(self.layers)))

    def left_out(self, checkpoint: Checkpoint) -> list[Skipped]:
        """Rows of a result for the layers that were not asked for."""
        wanted = self.wanted(checkpoint)
        rest = [layer for layer in checkpoint.architecture.analysed if layer not in wanted]
        if not rest:
            return []
        what = f"layer{'s' if len(rest) > 1 else ''} {runs(rest)}"
        return [Skipped(what=what, reason="not asked for")]

    def start(self, layer: int, hidden_size: int) -> Floats | None:
        """The relative's direction of this layer; UsageError if its width is another."""
        if self.near is None:
            return None
        if self.near.u.shape[1] != hidden_size:
            raise UsageError(
                f"the relative's directions have {self.near.u.shape[1]:,} coordinates and the "
                f"model has {hidden_size:,}",
                hint="leave --near out",
            )
        rows = [row.layer for row in self.near.document.layers]
        return self.near.u[rows.index(layer)] if layer in rows else None

    def expert_memory(self, checkpoint: Checkpoint) -> int:
        """Bytes that one block's routed experts may take; UsageError if not even one fits."""
        if self.memory is None:
            return EXPERT_MEMORY
        block, expert = memory_needed(checkpoint)
        needed = _BESIDE + block + expert
        if needed > self.memory:
            raise UsageError(
                f"the largest layer needs about {needed / 1e9:.1f} GB of memory",
                path=checkpoint.source.path,
                hint="allow more with --memory",
            )
        return self.memory - _BESIDE - block


def needed_memory(checkpoint: Checkpoint, memory: int) -> int:
    """Bytes that signing needs, about: with all experts of a layer where `memory` allows it."""
    block, expert = memory_needed(checkpoint)
    most = max((len(plan.experts) for plan in checkpoint.architecture.layers), default=0)
    experts = min(most * expert, EXPERT_MEMORY, memory - _BESIDE - block)
    return _BESIDE + block + max(expert, experts)


def layer_numbers(text: str) -> tuple[int, ...]:
    """Layers as a user writes them, `1-4,30`; UsageError if it is nothing of the kind."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        words = (first, last) if dash else (first, first)
        if not all(word.isascii() and word.isdecimal() and len(word) < 7 for word in words):
            raise UsageError(f"cannot read the layers {text!r}", hint="write them as 1-4,30")
        begin, end = (int(word) for word in words)
        if not 1 <= begin <= end:
            raise UsageError(
                f"{part.strip()!r} is no range of layers", hint="layers are numbered from 1"
            )
        numbers.update(range(begin, end + 1))
    return tuple(sorted(numbers))


def is_prefix(wanted: Sequence[int], analysed: Sequence[int]) -> bool:
    """Whether the wanted layers are the first of the analysed ones."""
    return list(wanted) == list(analysed[: len(wanted)])
