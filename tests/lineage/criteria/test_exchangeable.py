"""Orders that are not free, names that depend on each other, and bounds against random orders."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import toeplitz

from ckptforensics.lineage.correspondence.neurons import Named, agreeing
from ckptforensics.lineage.criteria.directions import among, random_orders
from ckptforensics.lineage.criteria.exchangeable import (
    _alike_across,
    _along_diagonals,
    at_own_index,
    neighbours_alike,
    without_own_index,
)
from ckptforensics.lineage.numeric import (
    effective,
    log10_binomial,
    log10_fixed_points,
    told_apart,
    unit_rows,
)

N, D = 192, 96


def noise(seed: int = 0, rows: int = N, columns: int = D) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def generator() -> np.random.Generator:
    return np.random.default_rng(5)


def blocks() -> np.ndarray:
    return noise() * np.kron(np.eye(8, dtype=np.float32), np.ones((N // 8, D // 8), np.float32))


def pruned() -> np.ndarray:
    rows = noise()
    return np.where(np.abs(rows) > np.median(np.abs(rows)), rows, 0)


def test_rows_that_were_laid_out_are_told():
    random = np.random.default_rng(1).standard_normal(N + D).astype(np.float32)
    band = toeplitz(random[:N], random[:D]).astype(np.float32)
    assert neighbours_alike(blocks(), generator())
    assert neighbours_alike(np.cumsum(noise(), axis=0) / 8, generator())
    assert _along_diagonals(band)
    identity = noise() * 0.02 + 0.5 * np.eye(N, D, dtype=np.float32)
    assert at_own_index(identity, np.arange(N), N)
    left = without_own_index(identity, np.arange(N), N)
    assert not at_own_index(left, np.arange(N), N)
    fixed = noise(9)
    same = [unit_rows(fixed + noise(seed)) for seed in range(3)]
    assert _alike_across(same, generator())


@pytest.mark.parametrize("rows", [noise(), pruned(), noise() * np.arange(1, D + 1)])
def test_free_orders_stay_free(rows):
    rows = rows.astype(np.float32)
    assert not neighbours_alike(rows, generator())
    assert not _along_diagonals(rows)
    assert not at_own_index(rows, np.arange(len(rows)), len(rows))
    assert not _alike_across([unit_rows(noise(seed)) for seed in range(4)], generator())


def test_bound_over_layers_holds_for_random_orders_and_is_tight():
    random = np.random.default_rng(2)
    layers, at = 30, np.arange(64)
    counts = [
        sum(int(np.sum(random.permutation(64) == at)) for _ in range(layers)) for _ in range(1_000)
    ]
    p = np.array([10 ** log10_fixed_points(count, layers) for count in counts])
    for alpha in (0.5, 0.1, 0.02):
        assert (p <= alpha).mean() <= alpha
    # 63 fixed points over 30 layers: a Poisson variable has 10^-7.0, L^k / k! is above 1.
    assert -7 < log10_fixed_points(63, 30) < -6
    for k in (63, 80):
        every = [30.0**j / np.exp(sum(np.log(k - i) for i in range(j))) for j in range(k + 1)]
        assert 10 ** log10_fixed_points(k, 30) == pytest.approx(min(every))


def test_more_orders_are_drawn_only_while_none_is_as_good():
    random = np.random.default_rng(3)
    assert random_orders(0.0, 99, random.standard_normal).size == 99
    drawn = random_orders(50.0, 99, random.standard_normal)
    assert drawn.size == 396
    assert among(50.0, drawn).log10_p == pytest.approx(-np.log10(397))
    found = []
    for _ in range(2_000):
        observed = float(random.standard_normal())
        drawn = random_orders(observed, 19, random.standard_normal)
        found.append(10 ** among(observed, drawn).log10_p)
    for alpha in (0.05, 0.025, 0.0125):
        assert np.mean(np.array(found) <= alpha) < alpha + 4 * np.sqrt(alpha / 2_000)


def test_signs_of_copies_are_one_toss():
    assert effective(np.ones((96, 40), np.float32)) == 1
    assert effective(np.zeros((96, 40), np.float32)) == 0
    assert effective(noise()) == N
    assert effective(noise() + 1) < 5  # a mean that all share
    assert told_apart(np.repeat(noise(rows=24), 8, axis=0)).sum() == 24
    assert log10_binomial(40, 40, 1.0) == 0
    assert log10_binomial(3, 3, 0.9) == pytest.approx(3 * np.log10(0.9))


def _named(seed: int, up: float) -> Named:
    gate = noise(seed)
    second = up * gate + np.sqrt(1 - up**2) * noise(seed + 50)
    return Named(unit_rows(gate), unit_rows(second.astype(np.float32)), signed=True)


@pytest.mark.parametrize(("up", "dependent"), [(1.0, True), (0.0, False)])
def test_other_neurons_of_a_model_tell_whether_two_names_are_one(up, dependent):
    both = _named(0, up)
    half = len(both.first) // 2
    order = generator().permutation(len(both.first))
    f = agreeing(both.at(order[:half]), both.at(order[half:]), generator())
    assert (f > 0.9) == dependent
    assert (f > 0.1) == dependent


def test_copies_of_neurons_agree_and_are_counted_once():
    one = _named(0, 0.0)
    copied = one.at(np.repeat(np.arange(N), 4))
    assert len(copied.distinct().first) == N
    assert agreeing(one, copied, generator()) == pytest.approx(1, abs=0.02)
    silent = Named(np.zeros((40, D), np.float32), np.ones((40, D), np.float32), signed=False)
    assert len(silent.distinct().first) == 0
