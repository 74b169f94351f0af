"""Linear parts of experts, sinks and gates against least squares on the true branches.

Of attention the linear part is exact. Of experts it is where the router weighs all inputs alike;
where it does not, the mean weight is an approximation, whose error is measured here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ckptforensics.architectures import RoutingPlan
from ckptforensics.forward import affine, attention_forward, experts_forward
from ckptforensics.layers import Attention, Ffn, Linear, Moe, Norm, Sink
from ckptforensics.linear import AttentionMap, Fit
from ckptforensics.linear.block import ffn_map

HIDDEN, WIDTH, EXPERTS, COUNT = 16, 24, 4, 100_000


def matrix(random: np.random.Generator, rows: int, columns: int, size: float = 1.0) -> Linear:
    weight = size * columns**-0.5 * random.standard_normal((rows, columns))
    return Linear(weight.astype(np.float32))


def gain(random: np.random.Generator) -> Norm:
    return Norm("rms", (1 + 0.3 * random.standard_normal(HIDDEN)).astype(np.float32), None, 1e-6)


def make_moe(routing: str, *, router: float) -> Moe:
    """Experts with a shared one; `router` is the size of the logits beside a bias."""
    random = np.random.default_rng(1)

    def expert() -> Ffn:
        gate, up = (matrix(random, WIDTH, HIDDEN) for _ in range(2))
        return Ffn(None, gate, up, matrix(random, HIDDEN, WIDTH), "silu", "down")

    weight = matrix(random, EXPERTS, HIDDEN, router)
    biased = replace(weight, bias=random.standard_normal(EXPERTS).astype(np.float32))
    return Moe(
        norm=gain(random),
        router=biased,
        correction=None,
        plan=RoutingPlan(routing, EXPERTS, 2, True, 1.5, 1, 1, 0.01),
        experts=tuple(expert() for _ in range(EXPERTS)),
        shared=expert(),
        shared_router=matrix(random, 1, HIDDEN, router),
    )


def make_attention(*, even: bool, sink: bool, gate: bool) -> Attention:
    random = np.random.default_rng(2)
    heads, kv, width = 4, 2, 6
    sinks = Sink(
        matrix(random, heads * width, HIDDEN, 0.0 if even else 1.0),
        matrix(random, kv * width, HIDDEN),
        random.standard_normal(heads).astype(np.float32),
        1.8,
    )
    return Attention(
        norm=gain(random),
        value=matrix(random, kv * width, HIDDEN),
        output=matrix(random, HIDDEN, heads * width),
        head_dim=width,
        repeats=heads // kv,
        sink=sinks if sink else None,
        gate=matrix(random, heads * width, HIDDEN) if gate else None,
    )


def least_squares(branch) -> tuple[np.ndarray, float]:
    """The linear map nearest to a branch on Gaussian vectors, and its relative sampling noise."""
    z = np.random.default_rng(3).standard_normal((COUNT, HIDDEN)).astype(np.float32)
    design = np.hstack([np.ones((COUNT, 1)), z])
    y = branch(z)
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    spread = np.sum((y - design @ coefficients) ** 2, axis=1) @ np.sum(z**2, axis=1)
    found = coefficients[1:].T
    return found, float(np.sqrt(spread) / COUNT / np.linalg.norm(found))


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def error_of_experts(moe: Moe) -> tuple[float, float]:
    """Relative error of F on Gaussian vectors, as the norm hands them on, and what noise makes."""
    expected, noise = least_squares(lambda z: experts_forward(moe, affine(z, moe.norm)))
    return difference(ffn_map(moe, Fit(), 1).dense(), expected), noise


@pytest.mark.parametrize("routing", ["softmax", "top-softmax", "sigmoid", "sparsemixer"])
def test_experts_with_an_even_router(routing: str):
    """Sampling noise is left."""
    error, noise = error_of_experts(make_moe(routing, router=0.0))
    assert error / noise == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("routing", ["softmax", "sigmoid"])
def test_mean_weights_are_right_for_routers_that_hardly_choose(routing: str):
    """The error vanishes with the router's choosiness; at logits of size 1 it is about a half.

    What is left out: an expert that is chosen sees inputs that are not Gaussian.
    """
    errors = []
    for size in (0.02, 1.0):
        moe = make_moe(routing, router=size)
        errors.append(error_of_experts(replace(moe, plan=replace(moe.plan, top_k=EXPERTS)))[0])
    assert errors[0] < 0.05
    assert errors[0] < errors[1] < 0.8


def test_experts_whose_input_is_weighed():
    moe = make_moe("sigmoid-input", router=0.0)
    moe = replace(moe, plan=replace(moe.plan, renormalise=False, scale=1.0))
    error, noise = error_of_experts(moe)
    assert error / noise == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(
    ("even", "sink", "gate"),
    [(True, True, False), (False, True, False), (False, False, True)],
    ids=["even sink", "sink", "gate"],
)
def test_attention_that_weighs_itself(even: bool, sink: bool, gate: bool):
    """Without a norm, so that attention reads the Gaussian itself: sampling noise is left."""
    attention = replace(make_attention(even=even, sink=sink, gate=gate), norm=None)
    expected, noise = least_squares(lambda z: attention_forward(attention, z))
    error = difference(AttentionMap(attention).dense(), expected)
    # An even sink leaves nothing but rounding.
    assert error < 1e-5 if even else error / noise == pytest.approx(1, abs=0.5)
