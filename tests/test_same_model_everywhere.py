"""One model in every container, and on the Hub, has one signature."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import ckptforensics
from ckptforensics.results import Signature
from tests.support.hub import COMMIT, REPO, loopback_hub
from tests.support.models import save, tiny_llama, write_gguf

ARRAYS = ("u", "v", "sigma", "residual")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model as its own library, torch and the gguf package write it."""
    folder = tmp_path_factory.mktemp("everywhere")
    model = tiny_llama(seed=3)
    places = {
        "safetensors": save(model, folder / "single"),
        "sharded": save(model, folder / "sharded", shards=3),
        "gguf": write_gguf(model, folder / "model.gguf"),
    }
    for name, state in {
        "torch": model.state_dict(),
        "torch-nested": {"model": model.state_dict()},
    }.items():
        places[name] = folder / name
        places[name].mkdir()
        torch.save(state, places[name] / "pytorch_model.bin")
        model.config.save_pretrained(places[name])
    return places


@pytest.fixture(scope="module")
def expected(places: dict[str, Path]) -> Signature:
    return ckptforensics.sign(places["safetensors"])


@pytest.fixture
def on_hub(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Every safetensors and GGUF form, a branch each."""
    with loopback_hub(monkeypatch, tmp_path) as hub:
        hub.add(places["safetensors"])
        hub.add(places["sharded"], "2" * 40, "sharded")
        hub.add({"model.gguf": places["gguf"].read_bytes()}, "3" * 40, "gguf")
        yield


def assert_same(found: Signature, expected: Signature) -> None:
    for name in ARRAYS:
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.document.fingerprint == expected.document.fingerprint
    assert found.document.explosion == expected.document.explosion
    assert found.document.decay == expected.document.decay
    assert found.document.direction == expected.document.direction
    assert found.document.skipped == expected.document.skipped == ()


@pytest.mark.parametrize("place", ["sharded", "torch", "torch-nested", "gguf"])
def test_container_does_not_matter(places, expected, place):
    assert_same(ckptforensics.sign(places[place]), expected)


@pytest.mark.usefixtures("on_hub")
@pytest.mark.parametrize("branch", ["main", "sharded", "gguf"])
def test_nor_does_the_hub(expected, branch):
    found = ckptforensics.sign(f"{REPO}@{branch}")
    assert_same(found, expected)
    assert (found.document.model.commit == COMMIT) is (branch == "main")


def test_signature_is_not_degenerate(expected):
    """Equality of zeros would show nothing."""
    assert np.isfinite(expected.u).all()
    assert np.allclose(np.linalg.norm(expected.u, axis=1), 1, atol=1e-5)
    assert (expected.sigma[:, 0] > expected.sigma[:, 1]).all()
