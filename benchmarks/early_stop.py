"""Whether searches may stop where the two leading values are certified to be close together.

    python -m benchmarks.early_stop [MODEL ...] [--write]

A layer without a gap has no direction of its own, and its search takes the most steps. It could
stop once both of these hold, with Ritz values s1 >= s2 after k steps on n rows:

* visible: (s1 + residual) / s2 <= LIMIT. s2 is at most the second singular value (interlacing), and
  one lies within the residual of s1.
* hidden: no value of twice s2, a clear gap, was missed, but with a probability of MISSED. For a
  random unit start y and x = sigma_1^2 / s1^2, Rayleigh-Ritz with a Chebyshev polynomial of degree
  k - 1 on [0, s1^2] gives 4 x (x - 1) T(2 x - 1)^2 <= 1 / <y, u1>^2, and |<y, u1>| is below t with
  a probability of at most t sqrt(2 n / pi).

Every model is measured as ever, and what the searches held at the step of the certificate is
compared with what they found in the end: steps, the angle between both u1, the differing bits of
the fingerprint. Last the share of the random start in u1, in units of what it is by chance: the
start is the same for all models, so that what is left of it makes strangers alike.
Without models, those at hand.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.common import fill_page
from benchmarks.rollout_tokens import PAGE, models
from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.findings import measure as measuring
from ckptforensics.findings.fingerprint import fingerprint, fingerprint_distance
from ckptforensics.linear import Fit
from ckptforensics.spectra import krylov

LIMITS = (1.05, 1.1)
CLEAR = 2.0
MISSED = 1e-6


def excluded(s1: float, s2: float, steps: int, rows: int) -> bool:
    """Whether a leading value of CLEAR times s2 is excluded, but with a probability of MISSED."""
    x = (CLEAR * s2 / s1) ** 2
    if x <= 1:
        return False
    # T_m(z) = cosh(m arcosh z) >= exp(m arcosh z) / 2
    grown = 2 * ((steps - 1) * np.arccosh(2 * x - 1) - np.log(2))
    return bool(np.log(4 * x * (x - 1)) + grown >= np.log(2 * rows / np.pi / MISSED**2))


@dataclass
class Search:
    """What one search held when it would have stopped, by limit, and in the end."""

    u: Any = None
    values: Any = None
    start: Any = None
    steps: int = 0
    early: dict[float, tuple[int, Any, Any]] = field(default_factory=dict)


def watched(path: Path) -> list[Search]:
    """The searches for two triplets of every layer."""
    found: dict[int, Search] = {}
    plain = krylov._Search.take

    def take(self: Any, *products: Any) -> None:
        plain(self, *products)
        if self._count != 2 or len(self._values) < 2:
            return
        one = found.setdefault(id(self), Search(start=self.start[:, -1].astype(np.float64)))
        kept.append(self)  # so that no other search takes its id
        p, n = self._combined[0], self._known
        s1, s2 = map(float, self._values[:2])
        one.u, one.values, one.steps = p[0] @ self._left[:n], (s1, s2), self._steps
        near = (1 + float(self._residuals[0])) * s1 / s2 if s2 > 0 else np.inf
        for limit in LIMITS:
            close = near <= limit and excluded(s1, s2, self._steps, self._left.shape[1])
            if close and limit not in one.early:
                one.early[limit] = self._steps, one.u, one.values

    kept: list[Any] = []
    with mock.patch.object(krylov._Search, "take", take):
        measuring.measure(open_checkpoint(path), Fit(), eigenpairs=None)
    return list(found.values())


def row(name: str, searches: list[Search], limit: float) -> str:
    """A line of the table."""
    steps = sum(one.steps for one in searches)
    stopped = [one for one in searches if limit in one.early]
    spared = sum(one.steps - one.early[limit][0] for one in stopped)
    u = np.stack([one.early.get(limit, (0, one.u))[1] for one in searches])
    values = np.array([one.early.get(limit, (0, 0, one.values))[2] for one in searches])
    ends = np.stack([one.u for one in searches]), np.array([one.values for one in searches])
    bits = fingerprint_distance(fingerprint(u, values), fingerprint(*ends))
    cosines = [abs(float(one.early[limit][1] @ one.u)) for one in stopped]
    angles = np.degrees(np.arccos(np.minimum(cosines, 1)))
    shares = [
        abs(float(one.early[limit][1] @ one.start)) / np.linalg.norm(one.start) * u.shape[1] ** 0.5
        for one in stopped
    ]
    told = (
        f"{np.median(angles):.2f}, {np.max(angles):.2f} | {np.mean(shares):.1f}"
        if stopped
        else "- | -"
    )
    return (
        f"| {name} | {limit} | {len(stopped)} of {len(searches)} | {spared} of {steps} "
        f"({spared / steps:.1%}) | {bits} | {told} |"
    )


def main() -> None:
    """Measure all, print the table, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    chosen = [(path.name, path) for path in arguments.models]
    chosen = chosen or [(path.stem, path) for _, path in models(families=False)]
    lines = [
        "| model | limit | layers stopped | steps spared | fingerprint, bits | angle to the u1 "
        "of the whole search, median and largest | share of the start, by chance 0.8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, path in chosen:
        searches = watched(path)
        for limit in LIMITS:
            lines.append(row(name, searches, limit))
            sys.stderr.write(lines[-1] + "\n")
    text = "\n".join(lines)
    sys.stdout.write(text + "\n")
    if arguments.write:
        fill_page(PAGE, "early", text)


if __name__ == "__main__":
    main()
