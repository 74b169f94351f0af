"""Sketches: what they keep of a model, and what does not move them."""

from __future__ import annotations

import numpy as np
import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import ResultError
from ckptforensics.layers import load_block, load_values
from ckptforensics.registry.sketch.features import CHANNELS, WIDTHS, features
from ckptforensics.registry.sketch.make import sketch
from ckptforensics.registry.sketch.record import (
    Sketch,
    Tokens,
    attention_record,
    heads_record,
    sketch_of,
)
from ckptforensics.registry.sketch.record import tokens_record as record_of
from ckptforensics.registry.sketch.score import LIMITS, score_of, scores
from ckptforensics.registry.sketch.spectra import KINDS, OF, at_ranks, likeness
from ckptforensics.registry.sketch.tokens import PLACES, RIDGE, named_by_strings
from ckptforensics.registry.sketch.tokens import likeness as likeness_of_tokens
from ckptforensics.results.sketch import Sketched
from tools import attacks, launder, transforms
from tools.zoo import ZOO


@pytest.fixture(scope="module")
def base():
    return transforms.read(ZOO / "seed0")


def sketched(path) -> Sketch:
    return sketch_of(sketch(open_checkpoint(path)).found)


@pytest.fixture(scope="module")
def seed0():
    return sketched(ZOO / "seed0")


def test_ridge_projection_is_that_of_the_normal_equations():
    rows = np.random.default_rng(0).standard_normal((80, 30)).astype(np.float32) + 2
    centred = rows - rows.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    expected = unit @ np.linalg.inv(unit.T @ unit + RIDGE * np.eye(30)) @ unit.T
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(likeness_of_tokens(rows), expected, atol=1e-6)


def test_values_are_those_of_the_whole_block():
    for name in ("seed0", "experts"):
        checkpoint = open_checkpoint(ZOO / name)
        whole, part = load_block(checkpoint, 2).attention, load_values(checkpoint, 2)
        assert np.array_equal(whole.value.weight, part.value.weight)
        assert np.array_equal(whole.output.weight, part.output.weight)
        assert np.array_equal(whole.norm.gain, part.norm.gain)


def test_ranks_do_not_see_padding():
    values = np.sort(np.random.default_rng(1).standard_normal((5, 24)), axis=1)[:, ::-1]
    padded = np.concatenate([values, np.full((5, 40), -30.0)], axis=1)
    np.testing.assert_allclose(at_ranks(padded), at_ranks(values))
    assert np.allclose(at_ranks(values).mean(axis=1), 0)


EXACT = {
    "everything": launder.everything,
    "padded": attacks.padded,
    "decoys": attacks.decoys,
    "copies": attacks.copies,
}


@pytest.mark.parametrize("how", EXACT)
def test_exact_changes_leave_the_sketch_alone(how, base, seed0, tmp_path):
    changed = EXACT[how](base, np.random.default_rng(3))
    found = scores(seed0, sketched(transforms.write(changed, tmp_path / how, "F32")))
    assert found["strings"] > 0.999
    assert found["heads"] > 0.999
    assert found["attention"] > 0.999


def test_what_replaces_one_channel_is_seen_by_another(base, seed0, tmp_path):
    redrawn = transforms.write(transforms.redraw_embeddings(base), tmp_path / "redrawn")
    found = scores(seed0, sketched(redrawn))
    assert found["strings"] < 0.1
    assert found["heads"] > 0.99
    found = scores(seed0, sketched(ZOO / "finetune-long"))
    assert found["heads"] < LIMITS["heads"]
    assert found["strings"] > 0.9


def test_the_zoo_is_told_apart(seed0):
    relatives = ("seed0-early", "finetune", "continued", "lora", "chain", "experts")
    for name in relatives:
        assert score_of(scores(seed0, sketched(ZOO / name))) > 0.1, name
    for name in ("seed1", "seed2"):
        assert score_of(scores(seed0, sketched(ZOO / name))) < -0.1, name


def test_products_of_vectors_estimate_the_scores(seed0):
    parts = np.cumsum(WIDTHS)[:-1]
    for name in ("seed0-early", "finetune", "continued", "seed1"):
        other = sketched(ZOO / name)
        pairs = zip(*(np.split(features(s), parts) for s in (seed0, other)), strict=True)
        found = {c: float(a @ b) for c, (a, b) in zip(CHANNELS, pairs, strict=True)}
        expected = scores(seed0, other)
        # The standard deviation of an estimate by 24 and 16 signs, and by 256 waves, is .06 to .08.
        assert all(abs(found[c] - expected[c]) < 0.3 for c in CHANNELS), (name, found, expected)


def test_a_missing_channel_is_none_and_not_a_low_score(seed0):
    for of in OF:
        alone = Sketch({}, {of: seed0.spectra[of]})
        assert set(scores(alone, seed0)) == {of}
        assert scores(alone, Sketch({"ids": seed0.tokens["ids"]}, {})) == {}
    assert score_of({}) < 0
    assert not features(Sketch({}, {})).any()


def test_vocabularies_share_the_tokens_that_both_have():
    words = {
        f"{a}{b}": i for i, (a, b) in enumerate((a, b) for a in "abcdefghij" for b in "klmnopqrst")
    }
    more = {**words, "zz": 100, "qq": 101, "a longer one": 102}
    shuffled = {text: (7 * i) % 103 for text, i in more.items()}
    names, ids = named_by_strings(words, 100)
    others, places = named_by_strings(shuffled, 103)
    kept = set(names) & set(others)
    assert len(kept) >= len(names) - 2
    by_id = {i: text for text, i in words.items()}
    by_place = {i: text for text, i in shuffled.items()}
    of = dict(zip(names, ids, strict=True))
    at = dict(zip(others, places, strict=True))
    assert all(by_id[of[name]] == by_place[at[name]] for name in kept)


def test_the_largest_record_has_less_than_100_kb():
    generator = np.random.default_rng(0)

    def tokens(count: int) -> Tokens:
        square = generator.standard_normal((count, count))
        names = np.sort(generator.choice(2**32, count, replace=False))
        return Tokens(names, square + square.T)

    made = {of: generator.standard_normal((KINDS[of].most, 16)) for of in OF}
    record = Sketched(
        tokens=tuple(record_of(by, tokens(count)) for by, count in PLACES.items()),
        heads=heads_record(made["heads"], 4_096),
        attention=attention_record(made["attention"], 200),
    )
    assert len(record.model_dump_json()) < 95_000
    back = sketch_of(record)
    for of in OF:
        assert np.abs(back.spectra[of] - made[of]).max() < 1e-3
        assert likeness(back.spectra[of], made[of], of) == pytest.approx(1, abs=1e-2)


def test_records_that_are_cut_are_refused(seed0):
    found = sketch(open_checkpoint(ZOO / "seed0")).found
    tokens = found.tokens[0].model_copy(update={"likeness": found.tokens[0].likeness[:-4]})
    with pytest.raises(ResultError, match="not as long as it says"):
        sketch_of(found.model_copy(update={"tokens": (tokens,)}))
    names = found.tokens[0].model_copy(update={"names": found.tokens[1].names[::-1]})
    with pytest.raises(ResultError):
        sketch_of(found.model_copy(update={"tokens": (names,)}))
