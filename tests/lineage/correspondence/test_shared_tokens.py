"""The tokens that two models share, by their strings or else by their ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage import models as opened
from ckptforensics.lineage.correspondence.shared_tokens import LEAST_SHARED, shared_tokens
from ckptforensics.lineage.pair import Pair
from tests.support.tokenizers import byte_level, model, unigram, vocabulary_of, word_piece


def pair_of(a: Path, b: Path, seed: int = 0) -> Pair:
    one, other = (opened.Model(str(path), open_checkpoint(path)) for path in (a, b))
    return Pair(one, other, seed=seed)


@pytest.mark.parametrize("make", [unigram, word_piece])
def test_other_kinds_share_words_with_byte_level(tmp_path, make):
    tokenizer, other = byte_level(), make()
    a = model(tmp_path / "a", tokenizer=tokenizer.to_str())
    b = model(tmp_path / "b", tokenizer=other.to_str())
    of_a, of_b = vocabulary_of(a), vocabulary_of(b)
    assert len(of_a.keys() & of_b.keys()) >= LEAST_SHARED
    assert " the" in of_a.keys() & of_b.keys()
    # The same string is the same text: as a word after a space, and as what continues one.
    assert tokenizer.id_to_token(of_a[" the"]) == "Ġthe"
    mark = {"unigram": "▁the", "word_piece": "the"}[make.__name__]
    assert other.id_to_token(of_b[" the"]) == mark
    shared = pair_of(a, b).once(shared_tokens)
    assert shared.by_string
    plain = str.maketrans({"Ġ": " ", "▁": " "})
    for one, another in zip(shared.a.tolist(), shared.b.tolist(), strict=True):
        text = other.id_to_token(another)
        if make is word_piece:
            text = text[2:] if text.startswith("##") else " " + text
        decoded = tokenizer.decode([one], skip_special_tokens=False)
        assert decoded == text.translate(plain)


def test_the_order_of_shared_tokens_depends_on_strings_and_seed_alone(tmp_path):
    vocabulary = {f"Ġword{i}": i for i in range(300)}
    moved = {text: 599 - number for text, number in vocabulary.items()}
    a = model(tmp_path / "a", vocab=vocabulary)
    b = model(tmp_path / "b", vocab=moved)
    shared = pair_of(a, b).once(shared_tokens)
    assert np.array_equal(shared.b, 599 - shared.a)
    assert sorted(shared.a.tolist()) == list(range(300))
    # A third model, with other weights and ids, meets the same words in the same order.
    c = model(tmp_path / "c", vocab={text: (7 * n) % 599 for text, n in vocabulary.items()})
    assert np.array_equal(pair_of(a, c).once(shared_tokens).a, shared.a)
    assert not np.array_equal(pair_of(a, b, seed=1).once(shared_tokens).a, shared.a)


def test_ids_beyond_the_embeddings_are_left_out(tmp_path):
    vocabulary = {f"Ġword{i}": i for i in range(300)}
    a = model(tmp_path / "a", vocabulary=100, vocab=vocabulary)
    b = model(tmp_path / "b", vocabulary=600, vocab=vocabulary)
    shared = pair_of(a, b).once(shared_tokens)
    assert sorted(shared.a.tolist()) == list(range(100))


def test_without_strings_equal_ids_are_taken_and_it_is_said(tmp_path):
    a = model(tmp_path / "a", vocab={"Ġa": 0})
    b = model(tmp_path / "b")
    shared = pair_of(a, b).once(shared_tokens)
    assert not shared.by_string
    assert np.array_equal(shared.a, shared.b)
    assert sorted(shared.a.tolist()) == list(range(600))


def test_what_is_not_known_to_be_shared_is_not_guessed(tmp_path):
    a, b = model(tmp_path / "a"), model(tmp_path / "b", vocabulary=700)
    with pytest.raises(NotApplicable, match=r"both have no vocabulary.*600 and 700"):
        pair_of(a, b).once(shared_tokens)
    words = {f"Ġword{i}": i for i in range(300)}
    others = {f"Ġother{i}": i for i in range(300)}
    few = pair_of(model(tmp_path / "c", vocab=words), model(tmp_path / "d", vocab=others))
    with pytest.raises(NotApplicable, match="share 0 strings"):
        few.once(shared_tokens)
