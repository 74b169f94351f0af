"""Sequences of the Bigram-Backcopy task: what follows what, and what the oracle knows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ckptforensics.errors import UsageError
from ckptforensics.runtime.toy.bigram import BigramBackcopy
from ckptforensics.runtime.toy.statistics import count, statistics

SHIPPED = statistics()


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return BigramBackcopy(SHIPPED).draw(512, np.random.default_rng(7))


def test_shipped_statistics_are_those_of_the_plays():
    assert len(SHIPPED.symbols) == 66
    assert [SHIPPED.symbols[i] for i in SHIPPED.triggers] == [" ", "e", "t"]
    # 'q' is followed by 'u' and by nothing else.
    row = SHIPPED.transitions[SHIPPED.symbols.index("q")]
    assert row[SHIPPED.symbols.index("u")] == pytest.approx(1, abs=0.01)
    assert SHIPPED.transitions.sum(axis=1) == pytest.approx(np.ones(66))


def test_sequences_begin_as_they_should(ids):
    assert ids.shape == (512, 257)
    assert (ids[:, 0] == 0).all()
    assert (ids[:, 1:] > 0).all()
    assert not SHIPPED.is_trigger[ids[:, 1]].any()


def test_what_follows_a_trigger_is_what_stood_before_it(ids):
    place = SHIPPED.is_trigger[ids[:, 1:-1]]
    assert place.mean() > 0.1
    assert (ids[:, 2:][place] == ids[:, :-2][place]).all()


@pytest.mark.parametrize("symbol", ["a", "h", "q", "\n"])
def test_what_follows_another_symbol_is_drawn_from_the_bigrams(ids, symbol):
    number = SHIPPED.symbols.index(symbol)
    following = ids[:, 1:][ids[:, :-1] == number]
    expected = SHIPPED.transitions[number] * len(following)
    counts = np.bincount(following, minlength=66)
    assert counts[expected == 0].sum() == 0
    kept = expected > 5
    rest_counts, rest = counts[~kept].sum(), expected[~kept].sum()
    observed = [*counts[kept], rest_counts] if rest > 0 else counts[kept]
    theory = [*expected[kept], rest] if rest > 0 else expected[kept]
    assert len(theory) < 2 or stats.chisquare(observed, theory).pvalue > 1e-4


def test_the_oracles_loss_is_the_entropy_of_what_it_knows(ids):
    drawn = BigramBackcopy(SHIPPED).sequences(256, np.random.default_rng(3))
    assert (drawn.oracle[drawn.triggers] == 0).all()
    entropy = stats.entropy(SHIPPED.transitions, axis=1)
    place = ~drawn.triggers
    assert drawn.oracle[place].mean() == pytest.approx(
        entropy[drawn.ids[:, :-1][place]].mean(), rel=0.01
    )


def test_a_text_of_ones_own(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abcabdabeabf" * 50)
    found = statistics(file)
    assert found.symbols == ("<s>", *"abcdef")
    assert found.transitions[found.symbols.index("a"), found.symbols.index("b")] == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"ab", "different characters"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"", "different characters"),
    ],
)
def test_a_text_that_does_not_do_is_refused(content, told, tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=told):
        statistics(file)


def test_characters_that_the_text_does_not_put_together_are_no_pair():
    """Of a text with more characters than are kept, only neighbours count; the last may go."""
    rare = [chr(0x4E00 + i) for i in range(100)]
    text = "".join(f"ab{one}" for one in rare) + "abcdefgh" * 50 + "~"
    symbols, counts = count(text)
    assert "~" not in symbols
    place = {symbol: i for i, symbol in enumerate(symbols)}
    left_out = [one for one in rare if one not in place]
    assert left_out
    # "b" is followed by "a" nowhere, though what stands between them is left out.
    assert counts[place["b"], place["a"]] == 0
    assert counts[place["a"], place["b"]] == text.count("ab")
    assert (counts.sum(axis=1) > 0).all()
