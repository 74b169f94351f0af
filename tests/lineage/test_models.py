"""Models of a comparison: how many layers are looked at at once, and what is read how."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.layers import reader
from ckptforensics.lineage import models
from ckptforensics.lineage.compare import compare_pair, seed_of
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from tests.support.lineage import llama
from tools import launder, transforms

PATIENCE = 60.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small LLaMA in BF16 and a laundered copy of it."""
    folder = tmp_path_factory.mktemp("models")
    model = llama(folder / "made")
    return (
        transforms.write(model, folder / "a", "BF16"),
        transforms.write(launder.noise(model, 0.02), folder / "b", "BF16"),
    )


def pair_of(folders) -> Pair:
    a, b = (Model(path.name, open_checkpoint(path)) for path in folders)
    return Pair(a, b, seed=seed_of(a, b))


def test_small_layers_are_looked_at_together_and_come_in_order(folders, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    pair = pair_of(folders)
    both = threading.Barrier(2)

    def work(layer: int) -> int:
        both.wait(PATIENCE)  # passed only by two at once
        assert pair.a.block(layer) is pair.a.block(layer)
        return layer

    layers = pair.a.layers[: len(pair.a.layers) // 2 * 2]
    assert len(layers) >= 2
    assert tuple(pair.by_layer(work, layers)) == layers


def test_large_layers_are_looked_at_one_by_one(folders, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(models, "_SMALL_LAYER", 0)
    pair = pair_of(folders)
    caller, seen = threading.get_ident(), []

    def work(layer: int) -> int:
        seen.append(threading.get_ident())
        return layer

    found = pair.by_layer(work, pair.a.layers)
    assert next(found) == pair.a.layers[0]
    assert seen == [caller]  # the next is not looked at before it is asked for
    assert (pair.a.layers[0], *found) == pair.a.layers
    assert set(seen) == {caller}


def test_what_several_threads_ask_for_is_found_once(folders):
    pair = pair_of(folders)
    calls, ready = [], threading.Barrier(4)

    def find(_: Pair) -> object:
        calls.append(None)
        return object()

    found: list[object] = []

    def ask() -> None:
        ready.wait(PATIENCE)
        found.append(pair.once(find))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(calls) == 1
    assert len(found) == 4
    assert len(set(map(id, found))) == 1


def test_bytes_are_counted_by_all_threads(folders):
    model = pair_of(folders).a
    threads = [
        threading.Thread(target=lambda: [model.count(3) for _ in range(2_000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert model.bytes_read == 24_000


def test_matrices_left_as_they_are_stored_give_the_same_record(folders, monkeypatch):
    pytest.importorskip("numba")
    decoded = compare_pair(pair_of(folders))
    monkeypatch.setattr(models, "_LARGE", 0)
    monkeypatch.setattr(models, "_SMALL_LAYER", 0)
    monkeypatch.setattr(reader, "KEPT_ELEMENTS", 0)
    kept = compare_pair(pair_of(folders))
    assert kept.verdict == decoded.verdict == "derived"
    assert [c.tensor for c in kept.changes] == [c.tensor for c in decoded.changes]
    for one, other in zip(kept.tests, decoded.tests, strict=True):
        assert (one.name, one.skipped) == (other.name, other.skipped)
        if other.statistic is None:
            continue
        # Products of float32 numbers, summed in another order.
        np.testing.assert_allclose(one.statistic, other.statistic, rtol=1e-4, atol=1e-4)
