"""The map between residual streams, against launderings whose map is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence import alignment as module
from ckptforensics.lineage.correspondence.alignment import Alignment, column_signs, find_alignment
from ckptforensics.lineage.correspondence.matched_layers import match_errors
from ckptforensics.lineage.correspondence.matching import match_layer
from ckptforensics.lineage.correspondence.shared_tokens import SharedTokens, shared_tokens
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from tests.support.lineage import llama, pair_of, tuned
from tests.support.models import save, tiny_gpt2
from tools import launder, transforms
from tools.transforms import EMBEDDING, HEAD

IN_PLACE = sorted(set(launder.EXACT) - {"signed-permutation", "rotation", "all"})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Four layers."""
    one, other = (llama(tmp_path_factory.mktemp("model"), seed) for seed in (0, 7))
    return transforms.stack((one, 0), (one, 1), (other, 0), (other, 1))


@pytest.fixture(scope="module")
def independent(tmp_path_factory):
    one, other = (llama(tmp_path_factory.mktemp("independent"), seed) for seed in (1, 8))
    return transforms.stack((one, 0), (one, 1), (other, 0), (other, 1))


@pytest.fixture(scope="module")
def smollm2(smollm2_f32):
    """Three layers of it and 2,048 of its tokens."""
    whole = transforms.read(smollm2_f32)
    few = transforms.stack(*((whole, layer) for layer in (4, 12, 20)))
    return few.change({EMBEDDING: few.tensors[EMBEDDING][:2048]}, vocab_size=2048)


def laundered(model, kind, seed=1):
    return launder.EXACT[kind](model, np.random.default_rng(seed))


def pair(folder, a, b, dtype="F32", **options):
    return pair_of(folder, a, b, dtypes=("F32", dtype), **options)


def remaining(found, a, b):
    """Relative error of A's embeddings, mapped, beside B's."""
    rows, wanted = a.tensors[EMBEDDING], b.tensors[EMBEDDING]
    mapped = found.scale * found.apply(rows)
    return np.linalg.norm(mapped - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("kind", IN_PLACE)
def test_launderings_that_leave_the_basis(model, tmp_path, kind):
    other = laundered(model, kind)
    found = pair(tmp_path, model, other).once(find_alignment)
    assert (found.kind, found.source, found.held_out_fit) == (
        "identity",
        "embeddings",
        pytest.approx(1, abs=1e-5),
    )
    assert remaining(found, model, other) < 1e-6
    assert (found.scale != 1) == (kind == "residual-scale")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("signed-permutation", "signed-permutation"),
        ("rotation", "rotation"),
        ("all", "rotation"),
    ],
)
def test_launderings_of_the_basis(model, tmp_path, kind, expected):
    other = laundered(model, kind)
    found = pair(tmp_path, model, other).once(find_alignment)
    assert (found.kind, found.source) == (expected, "embeddings")
    assert found.held_out_fit == pytest.approx(1, abs=1e-5)
    assert remaining(found, model, other) < 1e-5


def test_order_and_signs_are_the_ones_that_were_drawn(model, tmp_path):
    generator = np.random.default_rng(1)
    order = generator.permutation(model.config["hidden_size"])
    sign = generator.choice([-1.0, 1.0], order.size)
    found = pair(tmp_path, model, laundered(model, "signed-permutation")).once(find_alignment)
    np.testing.assert_array_equal(found.order, order)
    np.testing.assert_array_equal(found.signs, sign)
    assert found.found == (f"coordinates in another order, {(sign < 0).sum()} with the other sign",)


def test_signs_alone(model, tmp_path):
    flipped = model.tensors[EMBEDDING].copy()
    flipped[:, [3, 70]] *= -1
    found = pair(tmp_path, model, model.change({EMBEDDING: flipped})).once(find_alignment)
    assert found.kind == "signed-permutation"
    assert set(np.flatnonzero(found.signs < 0)) == {3, 70}
    assert found.found == ("2 of 128 coordinates have the other sign",)


@pytest.mark.parametrize(("dtype", "rounding"), [("F16", 2**-11), ("BF16", 2**-8)])
def test_half_precision(smollm2, tmp_path, dtype, rounding):
    other = laundered(smollm2, "all")
    found = pair(tmp_path, smollm2, other, dtype).once(find_alignment)
    assert found.kind == "rotation"
    assert remaining(found, smollm2, other) < rounding / 2
    assert found.held_out_fit > 0.9999


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_noise_on_top(smollm2, tmp_path, share):
    other = laundered(smollm2, "all")
    found = pair(tmp_path, smollm2, launder.noise(other, share)).once(find_alignment)
    assert (found.kind, found.source) == ("rotation", "embeddings")
    assert remaining(found, smollm2, other) < share


def test_noise_is_no_scale(smollm2, tmp_path):
    found = pair(tmp_path, smollm2, launder.noise(smollm2, 0.3)).once(find_alignment)
    assert (found.kind, found.scale, found.found) == ("identity", 1, ())


def test_independent_models_have_no_map(model, independent, smollm2, tmp_path):
    for name, a, b in (
        ("tiny", model, independent),
        ("shape", smollm2, transforms.random(smollm2, scale=0.05)),
        ("shuffled", model, model.change({EMBEDDING: model.tensors[EMBEDDING][::-1]})),
    ):
        found = pair(tmp_path / name, a, b)
        if name == "shuffled":  # the layers are the same, so it is not the embeddings that tell
            assert found.once(find_alignment).source == "directions"
            continue
        assert found.once(find_alignment).kind == "none"
        assert abs(found.once(find_alignment).held_out_fit) < 0.2
        assert "cosine" in found.once(find_alignment).reason
        with pytest.raises(NotApplicable, match="no map"):
            found.once(find_alignment).apply(a.tensors[EMBEDDING])


def test_trained_independent_models_have_no_map(tmp_path):
    zoo = transforms.read
    from tools.zoo import ZOO

    found = pair(tmp_path, zoo(ZOO / "seed0"), zoo(ZOO / "seed1")).once(find_alignment)
    assert found.kind == "none"
    assert 0.2 < found.held_out_fit < 0.7  # learned the same language


def test_two_stages_of_a_run_are_confirmed_by_neurons(tmp_path, monkeypatch):
    from tools.zoo import ZOO

    early, late = (transforms.read(ZOO / name) for name in ("seed0-early", "seed0"))
    found = pair(tmp_path / "a", early, laundered(late, "all")).once(find_alignment)
    assert (found.kind, found.source) == ("rotation", "embeddings")
    assert 0.75 < found.held_out_fit < 0.95
    monkeypatch.setattr(module, "confirmed", lambda *_: False)
    assert pair(tmp_path / "b", early, laundered(late, "all")).once(find_alignment).kind == "none"


@pytest.mark.parametrize(
    ("kind", "share", "expected", "source"),
    [
        ("neuron-permutation", 0.02, "identity", "directions"),
        ("signed-permutation", 0.02, "signed-permutation", "neurons"),
        ("all", 0, "rotation", "neurons"),
        ("all", 0.02, "rotation", "neurons"),
    ],
)
def test_embeddings_drawn_anew(smollm2, tmp_path, kind, share, expected, source):
    other = laundered(smollm2, kind)
    damaged = launder.noise(transforms.redraw_embeddings(other), share)
    found = pair(tmp_path, smollm2, damaged).once(find_alignment)
    assert (found.kind, found.source, found.held_out_fit) == (expected, source, None)
    assert remaining(found, smollm2, other) < max(1e-4, 2 * share)


def test_independent_models_with_embeddings_of_nobody(smollm2, tmp_path):
    other = transforms.random(smollm2, seed=3)
    assert (
        pair(tmp_path, smollm2, transforms.redraw_embeddings(other)).once(find_alignment).kind
        == "none"
    )


def narrow_rotations(both):
    both.effort = replace(both.effort, widest_rotation=64)
    return both


def test_large_widths_are_rotated_by_thorough_only(model, tmp_path):
    other = laundered(model, "rotation")
    found = narrow_rotations(pair(tmp_path / "default", model, other)).once(find_alignment)
    assert found.kind == "none"
    assert "--thorough" in found.reason
    assert (
        pair(tmp_path / "thorough", model, other, level="thorough").once(find_alignment).kind
        == "rotation"
    )


def test_unchanged_basis_of_large_widths_by_moments(smollm2, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_DIRECTIONS", 2)
    other = transforms.redraw_embeddings(laundered(smollm2, "neuron-permutation"))
    both = narrow_rotations(pair(tmp_path / "a", smollm2, other))
    found = both.once(find_alignment)
    assert (found.kind, found.source) == ("identity", "matrices")
    permuted = transforms.redraw_embeddings(laundered(smollm2, "signed-permutation"))
    assert (
        narrow_rotations(pair(tmp_path / "b", smollm2, permuted)).once(find_alignment).kind
        == "none"
    )


def test_fast_knows_an_unchanged_basis_only(model, independent, tmp_path):
    found = pair(tmp_path / "same", model, tuned(model), level="fast").once(find_alignment)
    assert (found.kind, found.source, found.held_out_fit) == ("identity", "directions", None)
    for name, other in (("all", laundered(model, "all")), ("independent", independent)):
        assert pair(tmp_path / name, model, other, level="fast").once(find_alignment).kind == "none"


def test_narrowed_coordinates(smollm2, tmp_path):
    narrow = transforms.narrow(smollm2)
    found = pair(tmp_path / "down", smollm2, narrow).once(find_alignment)
    assert (found.kind, found.found) == (
        "signed-permutation",
        ("432 of 576 coordinates are in both",),
    )
    assert remaining(found, smollm2, narrow) == 0
    back = pair(tmp_path / "up", narrow, smollm2).once(find_alignment)
    kept = back.order >= 0
    assert kept.sum() == 432
    wanted = smollm2.tensors[EMBEDDING] * kept
    np.testing.assert_array_equal(back.apply(narrow.tensors[EMBEDDING]), wanted)


def test_column_signs_are_those_of_the_coordinates(model, tmp_path):
    signs = column_signs(pair(tmp_path / "a", model, laundered(model, "neuron-permutation")))
    assert (signs == 1).all()
    permuted = pair(tmp_path / "b", model, laundered(model, "signed-permutation"))
    np.testing.assert_array_equal(column_signs(permuted), permuted.once(find_alignment).signs)
    with pytest.raises(NotApplicable, match="one by one"):
        column_signs(pair(tmp_path / "c", model, laundered(model, "rotation")))


def rotated_gpt2(folder):
    """GPT-2 and itself in a basis that keeps the mean of the coordinates, all norms folded."""
    plain = tiny_gpt2(0, n_embd=64, n_inner=160, vocab_size=400)
    other = tiny_gpt2(0, n_embd=64, n_inner=160, vocab_size=400)
    width = 64
    generator = np.random.default_rng(4)
    first = np.column_stack([np.ones(width), generator.standard_normal((width, width - 1))])
    second = np.column_stack([np.ones(width), generator.standard_normal((width, width - 1))])
    q = np.linalg.qr(first)[0] @ np.linalg.qr(second)[0].T  # takes the ones to the ones
    weights = {n: p.detach().numpy().astype(np.float64) for n, p in plain.named_parameters()}
    for layer in range(3):
        for norm, reader in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
            at = f"transformer.h.{layer}"
            gain, bias = (weights[f"{at}.{norm}.{part}"] for part in ("weight", "bias"))
            into = weights[f"{at}.{reader}.weight"]  # stored (in, out)
            weights[f"{at}.{reader}.bias"] += bias @ into
            weights[f"{at}.{reader}.weight"] = q.T @ (gain[:, None] * into)
            weights[f"{at}.{norm}.weight"], weights[f"{at}.{norm}.bias"] = gain * 0 + 1, bias * 0
        for writer in ("attn.c_proj", "mlp.c_proj"):
            for part in ("weight", "bias"):
                weights[f"{at}.{writer}.{part}"] = weights[f"{at}.{writer}.{part}"] @ q
    for name in ("transformer.wte.weight", "transformer.wpe.weight"):
        weights[name] = weights[name] @ q
    import torch

    other.load_state_dict(
        {n: torch.from_numpy(w).float() for n, w in weights.items()}, strict=False
    )
    return [save(m, folder / name) for m, name in ((plain, "plain"), (other, "rotated"))]


def test_layernorm_models_are_rotated_about_the_mean(tmp_path):
    a, b = (Model(p.name, open_checkpoint(p)) for p in rotated_gpt2(tmp_path))
    both = Pair(a, b)
    assert both.once(find_alignment).kind == "rotation"
    assert both.once(find_alignment).held_out_fit == pytest.approx(1, abs=1e-5)
    for layer in (1, 2, 3):
        match = match_layer(both, layer, layer)
        assert max(match_errors(match)) < 1e-4
        assert np.max(match.heads.errors) < 1e-4


def test_tokens_that_are_not_shared(model, tmp_path):
    both = pair(tmp_path, model, laundered(model, "rotation"))
    both.assume(shared_tokens, SharedTokens(np.arange(3), np.arange(3), by_string=True))
    assert both.once(find_alignment).kind in ("rotation", "none")
    assert both.once(find_alignment).source != "embeddings"
    assert both.once(find_alignment).reason == "only 3 tokens are shared"


def test_untied_heads_do_not_matter(model, tmp_path):
    other = laundered(model, "rotation")
    tied = other.change({HEAD: np.zeros_like(other.tensors[HEAD])})
    assert pair(tmp_path, model, tied).once(find_alignment).kind == "rotation"


def test_an_unchanged_basis_maps_nothing():
    rows = np.eye(3, dtype=np.float32)
    assert Alignment("identity").apply(rows) is rows
