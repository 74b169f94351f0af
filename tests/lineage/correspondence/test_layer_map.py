"""Which layers correspond: removed, added, swapped and repeated ones, in any basis and width."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptforensics
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence import layer_map
from ckptforensics.lineage.correspondence.layer_map import align, map_layers
from ckptforensics.lineage.correspondence.partners import free_partners
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Level, Pair
from ckptforensics.results import Signature
from tests.lineage.criteria.test_neurons import ZOO, opened, pair_with, zoo
from tests.support.models import save, tiny_gpt2, tiny_llama


def best_by_trying(similar: np.ndarray, gap: float) -> float:
    """The largest total over all order-preserving maps, one after another."""
    rows, columns = similar.shape
    totals = []
    for pairs in range(min(rows, columns) + 1):
        for left in combinations(range(rows), pairs):
            for right in combinations(range(columns), pairs):
                alone = rows + columns - 2 * pairs
                totals.append(similar[list(left), list(right)].sum() - gap * alone)
    return max(totals)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 4), (5, 3), (3, 6)])
def test_the_alignment_is_the_best_of_all(shape):
    for seed in range(20):
        similar = np.random.default_rng(seed).random(shape)
        path = align(similar, 0.4)
        assert [i for i, _ in path if i is not None] == list(range(shape[0]))
        assert [j for _, j in path if j is not None] == list(range(shape[1]))
        total = sum(-0.4 if i is None or j is None else similar[i, j] for i, j in path)
        assert total == pytest.approx(best_by_trying(similar, 0.4))


def test_no_layers_and_no_similarity_still_end():
    assert align(np.zeros((0, 3)), 0.4) == [(None, 0), (None, 1), (None, 2)]
    path = align(np.full((40, 30), -1.0), 0.4)
    assert len(path) == 70


# Signatures alone


def with_layers(signature: Signature, layers: list[int], noise: float, seed: int) -> Signature:
    """The layers (from 0) of a signature, their directions turned a little."""
    generator = np.random.default_rng(seed)

    def turned(x: np.ndarray) -> np.ndarray:
        x = x[layers] + noise * generator.standard_normal((len(layers), x.shape[1])) / np.sqrt(
            x.shape[1]
        )
        unit: np.ndarray = np.float32(x / np.linalg.norm(x, axis=1, keepdims=True))
        return unit

    rows = [
        signature.document.layers[old].model_copy(update={"layer": new + 1})
        for new, old in enumerate(layers)
    ]
    return replace(
        signature,
        document=signature.document.model_copy(update={"layers": tuple(rows)}),
        u=turned(signature.u),
        v=turned(signature.v),
        sigma=signature.sigma[layers],
        residual=signature.residual[layers],
    )


@pytest.fixture(scope="module")
def real(smollm2_gguf: Path) -> Signature:
    return ckptforensics.sign(smollm2_gguf)


def mapped(a: Signature, b: Signature) -> tuple[Any, ...]:
    return map_layers(
        Pair(Model("a", None, signature=a), Model("b", None, signature=b), level="fast")
    )


def test_two_hundred_deletions_are_found(real):
    generator = np.random.default_rng(0)
    for trial in range(200):
        kept = np.sort(generator.permutation(30)[int(generator.integers(1, 9)) :]).tolist()
        # A cosine of 0.95 to the original direction.
        found = mapped(real, with_layers(real, kept, 0.33, trial))
        pairs = {(a - 1, b - 1) for a, b in found if a is not None and b is not None}
        assert pairs == {(old, new) for new, old in enumerate(kept)}
        assert [a for a, _ in found if a is not None] == list(range(1, 31))


def test_as_many_layers_correspond_in_order(real):
    order = tuple((n, n) for n in range(1, 31))
    assert mapped(real, with_layers(real, list(range(30)), 0.33, 0)) == order
    # Nothing like each other: order, too.
    assert mapped(real, with_layers(real, list(range(30)), 50.0, 0)) == order


def test_one_removed_and_another_repeated(real):
    kept = [n for n in range(30) if n != 4]
    kept.insert(20, kept[20])
    found = mapped(real, with_layers(real, kept, 0.33, 0))
    assert (5, None) in found
    assert sum(a is None for a, _ in found) == 1
    pairs = [(a, b) for a, b in found if a is not None and b is not None]
    assert all(kept[b - 1] == a - 1 for a, b in pairs)
    assert len(pairs) == 29


# Weights in another basis


def zoo_signature(name: str) -> Signature:
    return ckptforensics.sign(ZOO / name)


def without(layer: int) -> tuple[tuple[int | None, int | None], ...]:
    return tuple(
        (n, None if n == layer else n - (n > layer)) for n in range(1, zoo("seed0").layers + 1)
    )


@pytest.mark.parametrize("level", ["default", "thorough"])
def test_a_removed_layer_is_seen_in_a_rotated_basis(tmp_path, level: Level):
    from tools import launder, transforms

    model = transforms.drop_layer(zoo("finetune"), 1)
    rotated = launder.everything(model, np.random.default_rng(1))
    assert map_layers(pair_with(tmp_path, rotated, level=level)) == without(2)


def test_a_removed_layer_is_seen_without_common_tokens_in_a_rotated_basis(tmp_path):
    from tools import launder, transforms

    model = transforms.redraw_embeddings(transforms.drop_layer(zoo("seed0"), 1))
    rotated = launder.rotation(model, np.random.default_rng(1))
    assert map_layers(pair_with(tmp_path, rotated)) == without(2)


def test_a_removed_layer_is_seen_at_another_width(tmp_path):
    from tools import transforms

    model = transforms.drop_layer(transforms.narrow(zoo("seed0")), 1)
    assert map_layers(pair_with(tmp_path, model)) == without(2)


def test_layers_added_are_seen_where_training_changed_all_directions(tmp_path):
    from tools import transforms

    model = transforms.stack(*((zoo("seed0"), n) for n in (0, 1, 1, 2, 2, 3)))
    pair = pair_with(tmp_path, model, other="continued")
    assert np.abs(np.einsum("ij,ij->i", pair.a.signature.u, zoo_signature("seed0").u)).max() < 0.6
    partners = [(a, b) for a, b in map_layers(pair) if a is not None]
    assert [a for a, _ in partners] == [1, 2, 3, 4]
    assert all(
        b in places for (_, b), places in zip(partners, ({1}, {2, 3}, {4, 5}, {6}), strict=True)
    )


def test_another_basis_of_as_many_layers_is_in_order(tmp_path):
    from tools import launder

    rotated = launder.everything(zoo("seed0"), np.random.default_rng(1))
    order = tuple((n, n) for n in range(1, zoo("seed0").layers + 1))
    assert map_layers(pair_with(tmp_path, rotated)) == order


# Layers that may be used twice


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("redraw", [False, True])
def test_repeated_layers_have_one_partner(tmp_path, rotate, redraw):
    from tools import launder, transforms

    model = transforms.stack(*((zoo("finetune"), n) for n in (0, 2, 1, 2, 3)))
    model = transforms.redraw_embeddings(model) if redraw else model
    model = launder.rotation(model, np.random.default_rng(1)) if rotate else model
    pair = pair_with(tmp_path, model)
    partners = free_partners(pair)
    assert [b for b, _, _ in partners] == [1, 2, 3, 4, 5]
    assert [a for _, a, _ in partners] == [1, 3, 2, 3, 4]
    # Pseudo-tokens, which are all that is left then, are less sharp.
    least = layer_map.PARTNER if rotate and redraw else 0.9
    assert all(score > least for _, _, score in partners)


def test_layers_of_independent_models_have_no_partner():
    pair = Pair(opened(ZOO / "seed0"), opened(ZOO / "seed1"))
    partners = free_partners(pair)
    assert all(a is None for _, a, _ in partners)
    assert max(score for _, _, score in partners) < layer_map.PARTNER / 2


def test_layers_of_experts_have_the_dense_ones_as_partners():
    for a, b in (("seed0", "experts"), ("experts", "seed0")):
        partners = free_partners(Pair(opened(ZOO / a), opened(ZOO / b)))
        assert [(b, a) for b, a, _ in partners] == [(n, n) for n in range(1, 5)]


def test_kinds_of_ffn_that_cannot_be_compared_are_told(tmp_path):
    a = opened(save(tiny_gpt2(0), tmp_path / "a"))
    b = opened(save(tiny_llama(0), tmp_path / "b"))
    with pytest.raises(NotApplicable, match="only one of the models have gates"):
        free_partners(Pair(a, b))
