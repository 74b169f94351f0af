"""How scores become weights, against transformers' routers and written-out arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ckptforensics.architectures import RoutingPlan
from ckptforensics.forward.routing import expert_shares, routing_weights
from ckptforensics.layers import Linear, Moe

HIDDEN, EXPERTS, TOP = 12, 6, 2


def moe(routing: str, *, size: float = 1.0, renormalise: bool = False, scale: float = 1.0) -> Moe:
    """A router alone; the experts are not asked."""
    weight = size * np.random.default_rng(1).standard_normal((EXPERTS, HIDDEN))
    plan = RoutingPlan(routing, EXPERTS, TOP, renormalise, scale, 1, 1, 0.01)
    return Moe(None, Linear(weight.astype(np.float32)), None, plan, ())


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((count, HIDDEN)).astype(np.float32)


def chosen_in_torch(scores: torch.Tensor, *, renormalise: bool = False) -> np.ndarray:
    values, places = torch.topk(scores, TOP, dim=1)
    if renormalise:
        values = values / values.sum(1, keepdim=True)
    return torch.zeros_like(scores).scatter(1, places, values).numpy()


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("routing", ["softmax", "sigmoid"])
def test_the_best_experts_keep_their_scores(routing, renormalise):
    router, n = moe(routing, renormalise=renormalise), rows(50)
    logits = torch.from_numpy(n @ router.router.weight.T).double()
    scores = logits.softmax(1) if routing == "softmax" else logits.sigmoid()
    expected = chosen_in_torch(scores, renormalise=renormalise)
    np.testing.assert_allclose(routing_weights(router, n), expected, atol=1e-6)


def test_mixtral_takes_the_softmax_of_the_best():
    """As transformers' own router does."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    router, n = moe("top-softmax"), rows(50)
    config = MixtralConfig(hidden_size=HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=TOP)
    theirs = MixtralTopKRouter(config)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(router.router.weight))
        _, values, places = theirs(torch.from_numpy(n))
    expected = torch.zeros(len(n), EXPERTS).scatter(1, places, values).numpy()
    np.testing.assert_allclose(routing_weights(router, n), expected, atol=1e-6)


def test_a_correction_chooses_and_does_not_weigh():
    plain, n = moe("sigmoid"), rows(20)
    correction = np.zeros(EXPERTS, np.float32)
    correction[[1, 4]] = 10
    weights = routing_weights(replace(plain, correction=correction), n)
    scores = torch.from_numpy(n @ plain.router.weight.T).double().sigmoid().numpy()
    np.testing.assert_allclose(weights[:, [1, 4]], scores[:, [1, 4]], atol=1e-6)
    assert np.count_nonzero(weights) == TOP * len(n)


def test_shares_are_means_over_gaussian_input():
    """An even router gives each expert the same; all shares sum to the factor."""
    for router in (moe("softmax", size=0.0), moe("softmax", renormalise=True, scale=1.5)):
        shares, shared = expert_shares(router)
        assert shared == 1.0
        assert {factor for _, factor in shares} == {1.0}
        total = sum(weight for weight, _ in shares)
        assert total == pytest.approx(1.5 if router.plan.renormalise else TOP / EXPERTS, rel=1e-9)
    mean = [weight for weight, _ in expert_shares(router)[0]]
    sampled = routing_weights(router, rows(200_000)).mean(axis=0)
    np.testing.assert_allclose(mean, sampled, atol=0.03)
