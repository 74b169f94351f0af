"""Tests of directions and gains against enumeration, scipy and their null."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.layer_map import map_layers
from ckptforensics.lineage.criteria import directions
from ckptforensics.lineage.criteria.criterion import Outcome
from ckptforensics.lineage.effort import EFFORTS
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from tests.support.models import save, tiny_llama
from tests.support.signatures import exchangeable, signature, signed_pair, unit

RUN = {test.name: test.run for test in directions.CRITERIA}
OF_SIGNATURES = ("direction max", "direction sum", "trigger sum")


class _Gains(Model):
    """A model of which only the gains are known."""

    def __init__(self, gains: np.ndarray | None) -> None:
        layers, width = (2, 8) if gains is None else gains.shape
        super().__init__("gains", None, signature=signature(unit(np.ones((layers, width)))))
        self._rows = gains

    def gains(self) -> np.ndarray | None:
        return self._rows


def _gain_pair(a: np.ndarray | None, b: np.ndarray | None, seed: int = 0) -> Pair:
    return Pair(_Gains(a), _Gains(b), seed=seed)


@pytest.fixture
def few_orders(monkeypatch):
    """As many random orders as a test of uniformity over hundreds of pairs can afford."""
    few = {level: replace(effort, orders=(199, 199)) for level, effort in EFFORTS.items()}
    monkeypatch.setattr("ckptforensics.lineage.pair.EFFORTS", few)


def p_of(outcome: Outcome) -> float:
    assert outcome.log10_p is not None
    return 10**outcome.log10_p


@pytest.mark.parametrize("depths", [(4, 4), (4, 3)])
@pytest.mark.parametrize("name", OF_SIGNATURES)
def test_p_is_uniform_on_independent_models(name, depths, few_orders):
    """Their coordinates are exchangeable, though a few of each model stand out in every layer."""
    generator = np.random.default_rng(5)
    found = []
    for seed in range(300):
        a, b = (signature(exchangeable(generator, n), exchangeable(generator, n)) for n in depths)
        found.append(p_of(RUN[name](signed_pair(a, b, seed=seed))))
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_p_of_gains_is_uniform_on_independent_models(few_orders):
    generator = np.random.default_rng(6)
    found = []
    for seed in range(300):
        # Every model has coordinates that its norms agree on, and some gains are equal.
        a, b = (
            np.round(generator.standard_normal(48) + generator.standard_normal((n, 48)), 1)
            for n in (6, 8)
        )
        found.append(p_of(RUN["gain rank"](_gain_pair(a, b, seed))))
    assert stats.kstest(found, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    ("name", "statistic"),
    [
        ("direction max", lambda c: np.abs(np.diag(c)).max()),
        ("direction sum", lambda c: np.square(np.diag(c)).sum()),
    ],
)
def test_p_is_that_of_all_orders(name, statistic):
    """Five coordinates have 120 orders; 4,999 random ones give their p to 4 standard errors."""
    generator = np.random.default_rng(1)
    u = unit(generator.standard_normal((3, 5)))
    v = unit(u + 0.7 * generator.standard_normal((3, 5)))
    every = [statistic(u @ v[:, list(order)].T) for order in permutations(range(5))]
    expected = np.mean([value >= statistic(u @ v.T) * (1 - 1e-6) for value in every])
    assert 0.01 < expected < 0.5
    outcome = RUN[name](signed_pair(signature(u), signature(v)))
    assert outcome.statistic == pytest.approx(statistic(u @ v.T), rel=1e-5)
    error = 4 * np.sqrt(expected * (1 - expected) / 4_999)
    assert p_of(outcome) == pytest.approx(expected, abs=error)


def test_all_pairs_of_layers_where_depths_differ():
    generator = np.random.default_rng(2)
    u, v = exchangeable(generator, 4), exchangeable(generator, 3)
    cosines = u @ v.T
    pair = signed_pair(signature(u), signature(v))
    assert RUN["direction max"](pair).statistic == pytest.approx(np.abs(cosines).max(), rel=1e-5)
    outcome = RUN["direction sum"](pair)
    assert outcome.statistic == pytest.approx(np.square(cosines).sum(), rel=1e-5)
    assert outcome.profile == ()


@pytest.mark.parametrize("name", OF_SIGNATURES)
@pytest.mark.parametrize("dropped", [(), (1,)])
def test_relatives_reach_the_floor(name, dropped):
    """Noise of half a direction's length, and a layer taken out."""
    generator = np.random.default_rng(3)
    u, v = exchangeable(generator), exchangeable(generator)
    noisy = [
        np.delete(unit(x + 0.5 / 8 * generator.standard_normal(x.shape)), dropped, axis=0)
        for x in (u, v)
    ]
    outcome = RUN[name](signed_pair(signature(u, v), signature(*noisy)))
    assert outcome.floor
    assert outcome.log10_p == pytest.approx(-np.log10(1 + 4 * 4999))


def test_gains_of_relatives_and_of_another_depth():
    generator = np.random.default_rng(4)
    gains = 1 + 0.1 * generator.standard_normal(64) + 0.1 * generator.standard_normal((8, 64))
    moved = gains[2:] * np.exp(0.05 * generator.standard_normal((6, 64)))
    outcome = RUN["gain rank"](_gain_pair(gains, moved))
    assert outcome.floor
    assert outcome.log10_p == pytest.approx(-np.log10(1 + 4 * 4999))
    ranks = [
        np.mean([stats.zscore(stats.rankdata(row)) for row in g], axis=0) for g in (gains, moved)
    ]
    assert outcome.statistic == pytest.approx(stats.pearsonr(*ranks).statistic)


@pytest.mark.parametrize("gains", [np.ones((4, 8)), None])
def test_gains_that_say_nothing_are_no_evidence(gains):
    varied = np.random.default_rng(0).standard_normal((4, 8))
    with pytest.raises(NotApplicable, match="gains"):
        RUN["gain rank"](_gain_pair(varied, gains))


def test_folded_norms_are_left_out_of_the_ranks():
    gains = np.random.default_rng(0).standard_normal((4, 64))
    half = np.concatenate([gains[:2], np.ones((2, 64))])
    alone = RUN["gain rank"](_gain_pair(gains[:2], gains[:2]))
    assert RUN["gain rank"](_gain_pair(half, gains[:2])).statistic == alone.statistic


def test_one_coordinate_that_coincides_is_a_small_angle_and_no_evidence():
    """The paper's distance calls these two relatives; p cannot be below 1 / width here."""
    width, generator = 576, np.random.default_rng(7)
    a, b = (
        unit(np.eye(width)[[507] * 6] + 1e-4 * generator.standard_normal((6, width))) for _ in "ab"
    )
    pair = signed_pair(signature(a), signature(b))
    found = directions.distance(pair)
    assert found is not None
    assert found[0] < 1
    for name in ("direction max", "direction sum"):
        outcome = RUN[name](pair)
        assert not outcome.floor
        assert p_of(outcome) > 0.5 / width


def test_layers_whose_direction_is_the_start_vector_are_left_out():
    """In layers that do nothing a shared start vector makes independent models alike."""
    generator = np.random.default_rng(8)
    start = exchangeable(generator, 4)
    gaps = [1.0, 1.00001, 2.0, 1.0]
    a, b = start.copy(), start.copy()
    a[2], b[2] = exchangeable(generator, 2, massive=0)
    pair = signed_pair(signature(a, gap=gaps), signature(b, gap=gaps))
    outcome = RUN["direction sum"](pair)
    assert p_of(outcome) > 0.01
    assert [value is None for value in outcome.profile] == [True, True, False, True]
    nothing = signature(start, gap=1.0)
    with pytest.raises(NotApplicable, match="no layer has a direction"):
        RUN["direction sum"](signed_pair(nothing, nothing))


def _idle(folder: Path, seed: int, *, attention: bool) -> Model:
    """A random model whose FFNs write nothing, and whose attention does not either unless asked."""
    model = tiny_llama(seed, attention_bias=False, mlp_bias=False)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            if not attention:
                layer.self_attn.o_proj.weight.zero_()
    return Model(str(seed), open_checkpoint(save(model, folder / str(seed))))


@pytest.mark.parametrize(("attention", "name"), [(False, "direction sum"), (True, "trigger sum")])
def test_parts_that_do_nothing_share_a_direction_and_are_no_evidence(attention, name, tmp_path):
    """Blocks added with zero weights, as when a model is made deeper, or FFNs taken out."""
    models = [_idle(tmp_path, seed, attention=attention) for seed in (0, 1)]
    u, v = (model.signature.v if attention else model.signature.u for model in models)
    assert np.abs(np.sum(u * v, axis=1)).min() > 0.99
    with pytest.raises(NotApplicable, match="no layer has a direction"):
        RUN[name](Pair(*models))


def test_widths_that_differ():
    pair = signed_pair(signature(unit(np.ones((3, 8)))), signature(unit(np.ones((3, 9)))))
    assert directions.angles(pair) == (None, None, None)
    assert directions.distance(pair) is None
    for name in OF_SIGNATURES:
        with pytest.raises(NotApplicable, match="widths differ: 8 and 9"):
            RUN[name](pair)


def test_angles_of_corresponding_layers():
    generator = np.random.default_rng(9)
    u = unit(generator.standard_normal((3, 16)))
    v = np.stack([-u[2], unit(u[0] + 0.3 * generator.standard_normal(16))])
    pair = signed_pair(signature(u), signature(v))
    pair.assume(map_layers, ((1, 2), (2, None), (3, 1)))
    one, none, three = directions.angles(pair)
    cosine = abs(float(u[0].astype(float) @ v[1].astype(float)))
    assert one == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-3)
    assert none is None
    assert three == 0
    assert directions.distance(pair) == (0, 3)


def test_a_hidden_angle_keeps_its_digits():
    """float32 cosines of angles below 0.02 degrees are 1."""
    u = np.array([[1, 0]], np.float32)
    v = np.array([[1, 1e-5]], np.float32)
    (angle,) = directions.angles(signed_pair(signature(u), signature(v)))
    assert angle == pytest.approx(np.degrees(1e-5), rel=1e-4)
