"""Which modules stay in 16 bits: by plan, by calibration, at random, all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import CkptError, NothingAnalysable
from ckptforensics.progress import Progress
from ckptforensics.quantization.plan import plan_quantization
from ckptforensics.results.quantization_plan import QuantizationPlanDocument
from ckptforensics.runtime.quantization.linears import Linear, downs


@dataclass(frozen=True)
class Choices:
    """The modules that each rule keeps, by name.

    Attributes
    ----------
    linears : all of the model
    layers : layers whose down projections are kept in place of the plan's modules
    """

    checkpoint: Checkpoint
    linears: tuple[Linear, ...]
    layers: tuple[int, ...] | None
    progress: Progress | None

    @cached_property
    def plan(self) -> QuantizationPlanDocument | CkptError:
        """The plan from the weights, or why there is none."""
        try:
            return plan_quantization(self.checkpoint, progress=self.progress)
        except CkptError as problem:
            return problem

    @property
    def source(self) -> str:
        """Where the planned modules come from."""
        if self.layers is None:
            return "the weights"
        return f"down projections of layers {', '.join(map(str, self.layers))}, as asked"

    @property
    def planned(self) -> tuple[str, ...]:
        """By the plan; NothingAnalysable where it keeps none."""
        if self.layers is not None:
            return tuple(d.name for d in downs(self.linears) if d.layer in self.layers)
        if isinstance(self.plan, CkptError):
            raise NothingAnalysable(f"there is no plan: {self.plan.message}")
        names = [self.named(module.module) for module in self.plan.kept]
        if not names:
            raise NothingAnalysable(self.plan.conclusion)
        return tuple(name for name in names if name is not None)

    def named(self, module: str) -> str | None:
        """The linear module that a plan calls so; a head around the body lengthens names."""
        for linear in self.linears:
            if linear.name == module or linear.name.endswith(f".{module}"):
                return linear.name
            if module.endswith(f".{linear.name}"):
                return linear.name
        return None

    def calibrated(self, peaks: Mapping[str, float]) -> tuple[str, ...]:
        """As many down projections: those that read the largest peaks."""
        order = sorted(peaks, key=lambda name: -peaks[name])
        chosen = set(order[: len(self.planned)])
        return tuple(d.name for d in downs(self.linears) if d.name in chosen)

    def random(self, seed: int) -> tuple[str, ...]:
        """As many down projections, each as likely as any other."""
        names = [d.name for d in downs(self.linears)]
        count = min(len(self.planned), len(names))
        drawn = np.random.default_rng(seed).choice(len(names), count, replace=False)
        return tuple(names[i] for i in sorted(drawn.tolist()))

    def every(self) -> tuple[str, ...]:
        """All down projections."""
        return tuple(d.name for d in downs(self.linears))


def share(linears: Sequence[Linear], kept: Sequence[str]) -> float:
    """Weights of the kept modules over those of all."""
    sizes = {linear.name: linear.size for linear in linears}
    return sum(sizes[name] for name in kept) / sum(sizes.values())
