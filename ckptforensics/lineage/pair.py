"""Two models side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from ckptforensics.arrays import Ints
from ckptforensics.errors import NothingAnalysable
from ckptforensics.lineage.models import Side
from ckptforensics.progress import Progress, Silent

if TYPE_CHECKING:
    from ckptforensics.lineage.changes.changes import Change
    from ckptforensics.lineage.correspondence.alignment import Alignment
    from ckptforensics.lineage.correspondence.matched_layers import LayerFacts

Level = Literal["fast", "default", "thorough"]


@dataclass(frozen=True)
class SharedTokens:
    """Tokens that both models have.

    Attributes
    ----------
    a, b : their ids in A and in B, in one order that depends on neither model's weights
    by_string : whether they were matched by their strings; else by their ids, which is assumed of
        vocabularies of one size
    """

    a: Ints
    b: Ints
    by_string: bool


@dataclass
class Pair:
    """Two models and how far they are compared.

    Attributes
    ----------
    a, b : the models
    level : `fast` reads signatures alone, `thorough` samples nothing
    progress : told of each test
    seed : of every random choice
    facts : what was noted of matched layers, by their numbers (see `recovered`)
    """

    a: Side
    b: Side
    level: Level = "default"
    progress: Progress = field(default_factory=Silent)
    seed: int = 0
    facts: dict[tuple[int, int], LayerFacts] = field(default_factory=dict, repr=False)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both models."""
        return self.a, self.b

    @property
    def thorough(self) -> bool:
        """Whether nothing is sampled."""
        return self.level == "thorough"

    @property
    def same_width(self) -> bool:
        """Whether the residual streams have as many coordinates."""
        return self.a.hidden_size == self.b.hidden_size

    @property
    def same_depth(self) -> bool:
        """Whether as many layers are analysed."""
        return len(self.a.layers) == len(self.b.layers)

    @cached_property
    def layer_map(self) -> tuple[tuple[int | None, int | None], ...]:
        """Corresponding layers, by their numbers from 1, in order; None where one has no partner.

        Layers correspond by their order where both models have as many, unless the weights say
        otherwise (see `layermap`).
        """
        from ckptforensics.lineage.correspondence.layer_map import map_layers

        return map_layers(self)

    @property
    def matched(self) -> tuple[tuple[int, int], ...]:
        """The layers that have a partner, with it."""
        return tuple((a, b) for a, b in self.layer_map if a is not None and b is not None)

    def sampled_layers(self, most: int) -> tuple[tuple[int, int], ...]:
        """At most so many of the matched layers, evenly spread; all of them if thorough."""
        matched = self.matched
        if self.thorough or len(matched) <= most:
            return matched
        at = np.linspace(0, len(matched) - 1, most).round().astype(int)
        return tuple(matched[i] for i in at)

    @cached_property
    def tokens(self) -> SharedTokens:
        """Tokens of both models.

        Raises
        ------
        NothingAnalysable
            if they share none, or whether they do is not known.
        """
        from ckptforensics.lineage.correspondence.shared_tokens import shared_tokens

        return shared_tokens(self)

    @cached_property
    def alignment(self) -> Alignment:
        """The map from A's residual coordinates to B's."""
        from ckptforensics.lineage.correspondence.alignment import find_alignment

        return find_alignment(self)

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """How the tensors that correspond differ; errors as `measure_changes`."""
        from ckptforensics.lineage.changes.changes import measure_changes

        return measure_changes(self)

    def generator(self, *key: int) -> np.random.Generator:
        """Random numbers of one purpose: the same key gives the same ones."""
        return np.random.default_rng([self.seed, *key])

    def need_same_width(self) -> None:
        """NothingAnalysable where the residual streams differ in width."""
        if not self.same_width:
            raise NothingAnalysable(
                f"the widths differ: {self.a.hidden_size:,} and {self.b.hidden_size:,}"
            )
