"""How often one character follows another: what the Bigram-Backcopy task draws from."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from ckptforensics.errors import UsageError

BEGIN = "<s>"
# Symbols of a text that are kept, the most frequent first; the published text has 65.
_MOST = 65
_TRIGGERS = 3
_FEWEST = 2 * _TRIGGERS


@dataclass(frozen=True)
class Statistics:
    """A text's characters and how they follow each other; symbol 0 is `<s>`.

    Attributes
    ----------
    name : of the text
    symbols : `<s>` and the characters, by number
    unigram : (V,) share of each symbol, 0 for `<s>`
    transitions : (V, V) probability of each next symbol; the row of `<s>` is the unigram without
        triggers
    triggers : numbers of the three most frequent characters
    """

    name: str
    symbols: tuple[str, ...]
    unigram: np.ndarray
    transitions: np.ndarray
    triggers: tuple[int, ...]

    @property
    def is_trigger(self) -> np.ndarray:
        """(V,) booleans."""
        found = np.zeros(len(self.symbols), bool)
        found[list(self.triggers)] = True
        return found


def statistics(text: Path | None = None) -> Statistics:
    """Those of a UTF-8 text file, or of the shipped counts of Shakespeare's plays.

    Characters beyond the 65 most frequent are left out of a text, and so is what they stand beside.

    Raises
    ------
    UsageError
        if the file cannot be read, or has too few different characters for the task.
    """
    if text is None:
        file = resources.files("ckptforensics.runtime.toy") / "shakespeare.json"
        shipped = json.loads(file.read_text("utf-8"))
        return _of(shipped["text"], shipped["symbols"], np.array(shipped["counts"], np.int64))
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
        raise UsageError(
            f"cannot read the text: {why}", path=text, hint="give a UTF-8 text file"
        ) from None
    symbols, counts = count(words)
    if len(symbols) < _FEWEST:
        raise UsageError(
            f"the text has {len(symbols)} different characters that others follow, and the task "
            f"needs {_FEWEST}",
            path=text,
            hint="give a longer text",
        )
    return _of(text.name, symbols, counts)


def count(text: str) -> tuple[list[str], np.ndarray]:
    """The most frequent characters, sorted, and (n, n) how often each follows each in the text.

    A character that none of the others follows, as one that only ends the text, is left out.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    kept = sorted(c for c, _ in Counter(text).most_common(_MOST))
    while True:
        symbols = np.array([ord(c) for c in kept], np.int64)
        place = np.searchsorted(symbols, codes).clip(0, max(len(symbols) - 1, 0))
        known = symbols[place] == codes if len(symbols) else np.zeros(len(codes), bool)
        pairs = known[:-1] & known[1:]
        counts = np.zeros((len(symbols), len(symbols)), np.int64)
        np.add.at(counts, (place[:-1][pairs], place[1:][pairs]), 1)
        followed = counts.sum(axis=1) > 0
        if followed.all():
            return kept, counts
        kept = [c for c, is_followed in zip(kept, followed, strict=True) if is_followed]


def _of(name: str, symbols: list[str], counts: np.ndarray) -> Statistics:
    size = len(symbols) + 1
    unigram = np.zeros(size)
    unigram[1:] = counts.sum(axis=1) / counts.sum()
    triggers = tuple(int(i) for i in np.argsort(-unigram, kind="stable")[:_TRIGGERS])
    transitions = np.zeros((size, size))
    transitions[1:, 1:] = counts / counts.sum(axis=1, keepdims=True)
    first = unigram.copy()
    first[list(triggers)] = 0
    transitions[0] = first / first.sum()
    return Statistics(name, (BEGIN, *symbols), unigram, transitions, triggers)
