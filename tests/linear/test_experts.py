"""Linear parts of experts, sinks and gates against least squares on the true branches.

Where the router, or the sink, weighs all inputs alike the linear part is exact. Where it does not,
the mean weight is an approximation, whose error is measured here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ckptforensics.architectures import RoutingPlan
from ckptforensics.layers import Attention, Ffn, Linear, Moe, Norm, Sink
from ckptforensics.linear import AttentionMap, Fit
from ckptforensics.linear.forward import attention_forward, ffn_forward
from ckptforensics.linear.operators import ffn_map

HIDDEN, WIDTH, EXPERTS, COUNT = 16, 24, 4, 200_000


def matrix(random: np.random.Generator, rows: int, columns: int, size: float = 1.0) -> Linear:
    weight = size * columns**-0.5 * random.standard_normal((rows, columns))
    return Linear(weight.astype(np.float32))


def gain(random: np.random.Generator) -> Norm:
    return Norm("rms", (1 + 0.3 * random.standard_normal(HIDDEN)).astype(np.float32), None, 1e-6)


def make_moe(routing: str, *, even: bool) -> Moe:
    """Experts with a shared one; an even router has a bias and no weight."""
    random = np.random.default_rng(1)

    def expert() -> Ffn:
        gate, up = (matrix(random, WIDTH, HIDDEN) for _ in range(2))
        return Ffn(None, gate, up, matrix(random, HIDDEN, WIDTH), "silu", "down")

    router = matrix(random, EXPERTS, HIDDEN, 0.0 if even else 1.0)
    router = replace(router, bias=random.standard_normal(EXPERTS).astype(np.float32))
    return Moe(
        norm=gain(random),
        router=router,
        correction=None,
        plan=RoutingPlan(routing, EXPERTS, 2, True, 1.5, 1, 1, 0.01),
        experts=tuple(expert() for _ in range(EXPERTS)),
        shared=expert(),
        shared_router=matrix(random, 1, HIDDEN, 0.0 if even else 1.0),
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


def least_squares(branch) -> np.ndarray:
    """The linear map nearest to what a branch makes of vectors of unit mean square."""
    z = np.random.default_rng(3).standard_normal((COUNT, HIDDEN)).astype(np.float32)
    # The branch must see these very vectors: a norm would make each of them unit by itself.
    z /= np.sqrt(np.mean(z**2, axis=1, keepdims=True))
    design = np.hstack([np.ones((COUNT, 1)), z])
    return np.linalg.lstsq(design, branch(z), rcond=None)[0][1:].T


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def test_experts_with_an_even_router():
    moe = make_moe("softmax", even=True)
    found = ffn_map(moe, Fit(), 1).dense()
    # 16 coordinates: a vector on the sphere is not quite Gaussian, 0.04 against dense FFNs too.
    dense = replace(moe.experts[0], norm=moe.norm)
    floor = difference(
        ffn_map(dense, Fit(), 1).dense(), least_squares(lambda z: ffn_forward(dense, z))
    )
    assert difference(found, least_squares(lambda z: ffn_forward(moe, z))) < 1.5 * floor + 0.01
    assert floor < 0.06


@pytest.mark.parametrize("routing", ["softmax", "top-softmax", "sigmoid", "sparsemixer"])
def test_experts_with_a_true_router(routing: str):
    moe = make_moe(routing, even=False)
    expected = least_squares(lambda z: ffn_forward(moe, z))
    error = difference(ffn_map(moe, Fit(), 1).dense(), expected)
    print(routing, error)
    assert error < 0.5


def test_experts_whose_input_is_weighed():
    moe = make_moe("sigmoid-input", even=False)
    moe = replace(moe, plan=replace(moe.plan, renormalise=False, scale=1.0))
    expected = least_squares(lambda z: ffn_forward(moe, z))
    error = difference(ffn_map(moe, Fit(), 1).dense(), expected)
    print("input", error)
    assert error < 0.5


@pytest.mark.parametrize(
    ("even", "sink", "gate", "limit"),
    [(True, True, False, 0.01), (False, True, False, 0.2), (False, False, True, 0.06)],
    ids=["even sink", "sink", "gate"],
)
def test_attention_that_weighs_itself(even: bool, sink: bool, gate: bool, limit: float):
    attention = make_attention(even=even, sink=sink, gate=gate)
    expected = least_squares(lambda z: attention_forward(attention, z))
    error = difference(AttentionMap(attention).dense(), expected)
    print("attention", error)
    assert error < limit
