"""What documents say of their own numbers, for every renderer alike."""

from __future__ import annotations

import pytest

from ckptforensics.results import (
    ExpertRecord,
    InspectDocument,
    LayerEvidence,
    ModelRecord,
    NormsDocument,
    TensorRecord,
)
from ckptforensics.results.inspection import TensorUse
from tests.support.comparisons import TESTS, a_pair, several, two

MODEL = ModelRecord(
    path="m", family="llama", family_source="config", hidden_size=4, num_layers=2, files=()
)


@pytest.mark.parametrize(("embedded", "median"), [((5.0, 1.0, 3.0), 3.0), ((4.0, 1.0), 2.5)])
def test_norms_stage_by_stage(embedded, median):
    count = len(embedded)
    document = NormsDocument(
        tool_version="1",
        model=MODEL,
        attention=True,
        tokens=(0,) * count,
        embedding_norms=embedded,
        norms=tuple((float(t), 10.0 - t) for t in range(count)),
        median=(0.25, 9.75),
    )
    before, first, second = document.stages
    assert (before.layer, before.norms, before.median) == (None, embedded, median)
    assert (before.minimum, before.maximum) == (1.0, max(embedded))
    assert (first.layer, first.median, first.minimum, first.maximum) == (1, 0.25, 0, count - 1)
    assert (second.layer, second.norms) == (2, tuple(10.0 - t for t in range(count)))


def tensor(name: str, role: str | None, **more) -> TensorRecord:
    fields = {"dtype": "BF16", "shape": (2, 3), "bytes": 12, "file": "a", "skipped": None, **more}
    return TensorRecord(name=name, role=role, **fields)


def test_tensors_by_use_and_file():
    """A quantized weight is counted with the weights, its parts with the files."""
    document = InspectDocument(
        tool_version="1", model=MODEL, description="", residual="sequential", norm="rms",
        epsilon=1e-5, activation="silu", num_heads=1, num_kv_heads=1, head_dim=1, ffn_width=1,
        num_experts=None, vocabulary_size=None, bos_token_id=None, parameters=1, parameters_used=1,
        tensors=(
            tensor("q", None, skipped="scores only"),
            tensor("up", "up"),
            tensor("down", "down", dtype="GPTQ4", bytes=7),
            tensor("down.codes", "down", dtype="I32", bytes=4, part_of="down"),
            tensor("down.scales", "down", dtype="F16", bytes=3, part_of="down", file="b"),
            tensor("up2", "up", dtype="F32", shape=(3,), file="b"),
            tensor("up3", "up", dtype="F32"),
        ),
    )  # fmt: skip
    assert document.uses == (
        TensorUse("up", None, 3, ("BF16", "F32"), ((2, 3), (3,)), 36),
        TensorUse("down", None, 1, ("GPTQ4",), ((2, 3),), 7),
        TensorUse(None, "scores only", 1, ("BF16",), ((2, 3),), 12),
    )
    assert [document.tensors_in(file) for file in "abc"] == [4, 2, 0]


def test_the_strongest_expert_comes_first():
    experts = tuple(
        ExpertRecord(name=str(i), weight=0.1, sigma=1.0, trigger_norm=norm)
        for i, norm in enumerate((1.0, 3.0, 2.0))
    )
    layer = LayerEvidence(
        layer=1, prefix="x", sigma=(1, 1), gap=1, trigger_norm=1, rollout_ratio=None, response=None,
        eigenvalue=None, label=None, strength=None, evidence=(), experts=experts,
    )  # fmt: skip
    assert [expert.name for expert in layer.strongest_experts] == ["1", "2", "0"]


def test_what_a_comparison_took():
    document = several()
    assert document.seconds == pytest.approx(6 * len(TESTS) * 0.81)
    assert document.bytes_read == 6 * (len(TESTS) - 2) * 12_300_000
    assert two(tests=()).seconds == two(tests=()).bytes_read == 0


def test_a_pair_knows_its_layers_changes_and_tests():
    pair = a_pair("a", "b")
    assert pair.angle_layers == [1, 2, 3, 4]
    inserted = a_pair("a", "b", layer_map=((2, 1), (None, 2), (4, 3)), angles_deg=(1.0, 2.0))
    assert inserted.angle_layers == [2, 4]
    assert a_pair("a", "b", layer_map=()).angle_layers == [1, 2, 3, 4]
    assert [change.layer for change in pair.largest_changes] == [8, 7, 6, 5, 4, 3, 2]
    assert [test.name for test in pair.tests if test not in pair.tests_run] == ["embedding columns"]


def test_widths_and_places_of_models():
    document = several()
    assert document.width_of(document.pairs[0]) == 576
    assert document.width_of(a_pair("nobody", "b")) is None
    assert document.pairs_by_place[frozenset((1, 3))].b == "other width"
