"""The plan of a real model: explosion and decay layers first, and their super weights."""

from __future__ import annotations

from ckptforensics import plan_quantization


def test_the_plan_of_smollm2(smollm2_gguf):
    plan = plan_quantization(smollm2_gguf)
    assert (plan.explosion, plan.decay) == ((2, 3, 12), (10, 29, 30))
    first = plan.modules[:4]
    assert {m.layer for m in first} == {29, 12, 3, 10}
    assert {m.module.rpartition(".")[2] for m in plan.kept} == {"down_proj"}
    assert {m.layer for m in plan.kept} == {29, 12, 3, 10, 30, 28}
    found = {m.layer: (w.row, w.column) for m in plan.kept for w in m.super_weights}
    assert found[29] == (507, 678)
    assert found[12] == (507, 1229)
    assert found[28] == (199, 903)
    explosion = next(m for m in plan.kept if m.layer == 12)
    # An ordinary token's activations are all rounded to 0 under the initial token's scale.
    assert explosion.error.ordinary is not None
    assert explosion.error.ordinary > 0.95
    assert explosion.error.ordinary_alone is not None
    assert explosion.error.ordinary_alone < 0.2
    assert explosion.error.initial is not None
    assert explosion.error.initial < 0.1
