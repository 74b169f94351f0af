"""Explosion and decay layers, decided from evidence that agrees (docs/mathematics.md, section 8).

Every criterion is a sentence with its numbers and whether it holds; some are required, and the
share that holds is the label's strength. docs/mathematics.md, section 8, shows the thresholds
against SmolLM2, whose last layer is the closest to one (its tokens shrink to 0.58).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ckptforensics.findings.measure import SHARED, LayerMeasurement
from ckptforensics.quantities import number

# Median growth of single tokens over one layer that is called an explosion.
EXPLOSION_RATIO = 2.5
# Median shrinkage that is called a decay.
DECAY_RATIO = 2 / 3
# |cosine| from which two directions count as the same (45 degrees; random ones: 1/sqrt(d)).
_ALIGNED = float(np.sqrt(0.5))
_CLEAR_GAP = 2.0
# Share of its norm that a decay layer takes off a token along the shared direction.
_TAKEN_OFF = 0.25


@dataclass(frozen=True)
class Label:
    """A layer's label, its strength in 0..1 (None without a label) and its evidence in words."""

    name: Literal["explosion", "decay"] | None
    strength: float | None
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class _Criterion:
    holds: bool
    words: str


def label(m: LayerMeasurement) -> Label:
    """Label one measured layer."""
    if m.before is None or m.after is None:
        return Label(None, None, ())
    if m.before.median == 0:
        said = "not: the median norm of single tokens, which is 0 before it, has no growth"
        return Label(None, None, (said,) if m.after.median > 0 else ())
    growth = m.after.median / m.before.median
    if growth >= EXPLOSION_RATIO:
        required, supporting = _explosion(m, growth)
        name: Literal["explosion", "decay"] = "explosion"
    elif growth <= DECAY_RATIO:
        required, supporting = _decay(m, growth)
        name = "decay"
    else:
        return Label(None, None, ())
    criteria = [*required, *supporting]
    evidence = tuple(("" if c.holds else "not: ") + c.words for c in criteria)
    if not all(c.holds for c in required) or not any(c.holds for c in supporting):
        return Label(None, None, evidence)
    return Label(name, sum(c.holds for c in criteria) / len(criteria), evidence)


def _explosion(m: LayerMeasurement, growth: float) -> tuple[list[_Criterion], list[_Criterion]]:
    assert m.before is not None and m.after is not None
    shared = m.after.direction
    answer = m.trigger.output.astype(np.float64) / max(m.trigger.norm, 1e-30)
    answer_cosine = abs(float(answer @ shared))
    u_cosine = abs(float(m.spectrum.left[:, 0] @ shared))
    gap = m.gap
    required = [
        _Criterion(
            True,
            f"median norm of single tokens grows {number(growth)}-fold "
            f"({number(m.before.median)} to {number(m.after.median)})",
        ),
        _Criterion(
            m.after.concentration >= SHARED,
            f"after it the tokens share one direction (concentration {m.after.concentration:.2f})",
        ),
    ]
    supporting = [
        _Criterion(
            answer_cosine >= _ALIGNED,
            f"the FFN answers its trigger along that direction (cosine {answer_cosine:.2f}, "
            f"norm {number(m.trigger.norm)})",
        ),
        _Criterion(u_cosine >= _ALIGNED, f"u1 of L is that direction (cosine {u_cosine:.2f})"),
        _Criterion(gap >= _CLEAR_GAP, f"s1 of L stands out (gap {number(gap)})"),
    ]
    return required, supporting


def _decay(m: LayerMeasurement, growth: float) -> tuple[list[_Criterion], list[_Criterion]]:
    assert m.before is not None and m.after is not None
    plus = 0.0 if m.response is None else m.response.plus
    taken = -plus / m.probe_size if m.probe_size else 0.0
    rise = m.before.median / m.lowest if m.lowest else math.inf
    shrinks = f"shrinks to {growth:.2f} ({number(m.before.median)} to {number(m.after.median)})"
    u_cosine = abs(float(m.spectrum.left[:, 0] @ m.before.direction))
    required = [
        # Where nothing had grown, nothing decays: a block that ends in a norm sets its tokens'
        # size by that norm's gain alone, to more in one layer and to less in the next.
        _Criterion(True, f"median norm of single tokens {shrinks}")
        if rise >= EXPLOSION_RATIO
        else _Criterion(
            False,
            f"median norm of single tokens loses what it had gained: {shrinks}, "
            f"having been {number(rise)} times its lowest",
        ),
        _Criterion(
            m.before.concentration >= SHARED,
            "before it the tokens share one direction "
            f"(concentration {m.before.concentration:.2f})",
        ),
    ]
    supporting = [
        _Criterion(
            m.probed_tokens and taken >= _TAKEN_OFF,
            f"the block adds {number(plus, signed=True)} along that direction at norm "
            f"{number(m.probe_size)}",
        ),
        _Criterion(u_cosine >= _ALIGNED, f"u1 of L is that direction (cosine {u_cosine:.2f})"),
    ]
    return required, supporting
