"""How far a norm behind a branch, or behind a sum, is from the best linear map.

L gives such a norm the size that the linear part alone would have on isotropic input, a convention
that the dense reference shares. Here it stands against least squares on the norm's true output.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.families.harness import build_model, run_one_token
from tests.families.reference import convention_and_least_squares
from tests.families.test_families import CASES
from tests.families.wiring import choose_block, wire

# Relative difference after the best common factor, and that factor: measured values, and bounds
# that leave the noise of 200,000 vectors (3 %) and other random weights some room. An FFN's true
# output is larger than its linear part, by what its units return whatever their sign.
MEASURED = {
    "gemma2": (0.10, 2.2),
    "olmo2": (0.08, 2.9),
    "bert": (0.02, 1.1),
}


@pytest.mark.parametrize("name", MEASURED)
def test_norm_behind_the_ffn(name: str) -> None:
    """The direction is that of the best linear map, the size is too large."""
    case = next(case for case in CASES if case.name == name)
    model = build_model(case)
    number = choose_block(model, case.blocks)
    wiring = wire(model, case.blocks, number, lambda: run_one_token(model, case))
    ours, best = convention_and_least_squares(wiring.ffn, 48, 200_000)
    factor = np.sum(ours * best) / np.sum(best**2)
    shape = np.linalg.norm(ours / factor - best) / np.linalg.norm(best)
    difference, size = MEASURED[name]
    assert shape < difference + 0.03
    assert factor == pytest.approx(size, rel=0.15)
