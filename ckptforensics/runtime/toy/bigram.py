"""The Bigram-Backcopy task (arXiv 2410.13835): sequences, and the loss of who knows the rule.

A sequence begins with `<s>` and a character that is no trigger. What follows a character is drawn
from the text's bigrams, except behind a trigger: there it is the character before the trigger.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckptforensics.runtime.toy.statistics import Statistics

LENGTH = 256


@dataclass(frozen=True)
class Sequences:
    """Drawn sequences, each with the symbol that follows its last.

    Attributes
    ----------
    ids : (B, T + 1) symbols
    triggers : (B, T) whether the symbol at a place is a trigger: the next one is copied
    oracle : (B, T) loss in nats of a predictor that knows the rule; 0 behind a trigger
    """

    ids: np.ndarray
    triggers: np.ndarray
    oracle: np.ndarray


class BigramBackcopy:
    """Draws sequences, all of a batch at a time.

    Parameters
    ----------
    statistics : of the text
    """

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self._is_trigger = statistics.is_trigger
        # A uniform number's place among these is the next symbol: one sorted list for all rows,
        # row r's between r and r + 1.
        size = len(statistics.symbols)
        cumulative = statistics.transitions.cumsum(axis=1)
        cumulative /= cumulative[:, -1:]
        self._steps = (cumulative + np.arange(size)[:, None]).ravel()
        self._size = size

    def draw(self, count: int, generator: np.random.Generator, length: int = LENGTH) -> np.ndarray:
        """(count, length + 1) symbols."""
        uniform = generator.random((length, count))
        ids = np.zeros((length + 1, count), np.int64)
        for place in range(length):
            now = ids[place]
            # The last step of a row is exactly r + 1, so no number ends in the next row.
            drawn = np.searchsorted(self._steps, now + uniform[place], side="right")
            following = np.minimum(drawn - now * self._size, self._size - 1)
            copied = self._is_trigger[now]
            ids[place + 1] = np.where(copied, ids[place - 1], following) if place else following
        return np.ascontiguousarray(ids.T)

    def sequences(
        self, count: int, generator: np.random.Generator, length: int = LENGTH
    ) -> Sequences:
        """Sequences with their triggers and the oracle's loss."""
        ids = self.draw(count, generator, length)
        triggers = self._is_trigger[ids[:, :-1]]
        likely = self.statistics.transitions[ids[:, :-1], ids[:, 1:]]
        oracle = np.where(triggers, 0.0, -np.log(np.where(triggers, 1.0, likely)))
        return Sequences(ids, triggers, oracle)
