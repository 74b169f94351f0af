"""What a run of training is made of: the recipe, the task, and how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ckptforensics.runtime.toy.network import Shape

# Beside the seed, for what is drawn to measure: no run has a step of this number.
NO_STEP = 2**40


@dataclass(frozen=True)
class Recipe:
    """All that a run's bits depend on, besides the task and the number of threads.

    Attributes
    ----------
    optimizer : `adamw` (betas .9 and .99) or `sgd` (momentum .9)
    rate : learning rate, constant; the language task's rises over the first 100 steps
    decay : weight decay
    clip : largest norm of the gradient, None for any
    batch : sequences a step
    seed : of the random weights and of the sequences
    dtype : element type of the saved checkpoints, `F32` or `BF16`
    """

    optimizer: str = "adamw"
    rate: float = 3e-4
    decay: float = 1e-4
    clip: float | None = None
    warm_up: int = 0
    batch: int = 32
    seed: int = 0
    dtype: str = "F32"


class Task(Protocol):
    """What is learnt: batches, and what is measured beside them.

    Attributes
    ----------
    name : `bigram-backcopy` or `language`
    text : name of the text
    digest : SHA-256 of what is drawn from it
    model_type : of the family that reads the checkpoints
    begin : id of the token that begins a sequence
    """

    name: str
    text: str
    digest: str
    model_type: str
    begin: int

    @property
    def vocabulary(self) -> int:
        """Tokens."""

    def batch(self, shape: Shape, recipe: Recipe, step: int) -> tuple[Any, Any]:
        """Inputs and targets of a step, (B, T) each, as arrays; targets of -100 do not count."""

    def measure(self, shape: Shape, tensors: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """What the log says of a network, `loss` first."""

    def tokenizer(self) -> str:
        """Content of `tokenizer.json`."""


@dataclass(frozen=True)
class Schedule:
    """How long a run is, and how often it is measured and saved, in steps."""

    steps: int
    log_every: int = 20
    save_every: int = 500


def usual_rate(task: str, shape: Shape, optimizer: str) -> float:
    """The learning rate of the publication, or of the language models."""
    if task == "language":
        return {"adamw": 3e-3, "sgd": 0.3}[optimizer]
    if shape.attention == "relu" and shape.layers == 1:
        return 3e-3
    return {"adamw": 3e-4, "sgd": 0.03}[optimizer]


def rounded(value: Any) -> float:
    """A tensor of one element to six digits: what a log needs."""
    return float(f"{float(value):.6g}")
