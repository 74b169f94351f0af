"""Two models and what was found of them so far."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from ckptforensics.compute.threads import in_threads
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.effort import EFFORTS, Effort
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.randomness import Stream, generator
from ckptforensics.progress import Progress, Silent
from ckptforensics.results.comparison import Level

Item = TypeVar("Item")
Found = TypeVar("Found")
Key = ParamSpec("Key")


@dataclass
class Pair:
    """Two models and how far they are compared.

    Attributes
    ----------
    a, b : the models
    level : `fast` reads signatures alone, `thorough` samples nothing
    progress : told of each criterion
    seed : of every random choice
    effort : what the level samples; by default that of `level`
    shown : whether an exact test has shown more than any number of random orders could
    """

    a: Model
    b: Model
    level: Level = "default"
    progress: Progress = field(default_factory=Silent)
    seed: int = 0
    effort: Effort = field(default=None, kw_only=True)  # type: ignore[assignment]
    shown: bool = field(default=False, init=False)
    _found: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    _finding: dict[Any, threading.RLock] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.effort is None:
            self.effort = EFFORTS[self.level]

    @property
    def models(self) -> tuple[Model, Model]:
        """Both models."""
        return self.a, self.b

    @property
    def has_weights(self) -> bool:
        """Whether neither model is a saved signature."""
        return all(model.checkpoint is not None for model in self.models)

    @property
    def reads_weights(self) -> bool:
        """Whether the weights of both models are there and looked at."""
        return self.effort.reads_weights and self.has_weights

    @property
    def same_width(self) -> bool:
        """Whether the residual streams have as many coordinates."""
        return self.a.hidden_size == self.b.hidden_size

    @property
    def same_depth(self) -> bool:
        """Whether as many layers are analysed."""
        return len(self.a.layers) == len(self.b.layers)

    def once(
        self,
        find: Callable[Concatenate[Pair, Key], Found],
        *args: Key.args,
        **kwargs: Key.kwargs,
    ) -> Found:
        """What `find` returns of this pair, found when it is first asked for.

        An exception is not kept: `find` is then run again. Of several threads that ask, one finds
        it and the others wait.
        """
        key = (find, args, tuple(sorted(kwargs.items())))
        with self._finding.setdefault(key, threading.RLock()):
            if key not in self._found:
                self._found[key] = find(self, *args, **kwargs)
        found: Found = self._found[key]
        return found

    def by_layer(self, work: Callable[[Item], Found], layers: Iterable[Item]) -> Iterator[Found]:
        """`work` of each layer, or pair of layers, in their order, as results are asked for.

        Small ones are looked at on all cores at once. One that is large enough to keep them busy is
        alone, so that no more than one is in memory.
        """
        waiting = iter(layers)
        while some := list(islice(waiting, self.at_once)):
            yield from in_threads(work, some)

    @property
    def at_once(self) -> int:
        """Layers to look at at once; see `Model.at_once`."""
        return min(model.at_once for model in self.models)

    def known(self, find: Callable[..., Found]) -> list[Found]:
        """All that `find` has returned so far, whatever it was given."""
        return [found for (of, *_), found in list(self._found.items()) if of is find]

    def assume(self, find: Callable[[Pair], Found], found: Found) -> None:
        """Take something for found already, such as a layer map that is known."""
        self._found[find, (), ()] = found

    def reversed(self) -> Pair:
        """The same pair with A and B exchanged, of which nothing was found yet."""
        return Pair(self.b, self.a, self.level, self.progress, self.seed, effort=self.effort)

    def generator(self, stream: Stream, *key: int) -> np.random.Generator:
        """Random numbers of one stream; see `randomness.generator`."""
        return generator(self.seed, stream, *key)

    def need_same_width(self) -> None:
        """NotApplicable where the residual streams differ in width."""
        if not self.same_width:
            raise NotApplicable(
                f"the widths differ: {self.a.hidden_size:,} and {self.b.hidden_size:,}"
            )


def spread(items: Sequence[Item], most: int | None) -> tuple[Item, ...]:
    """At most so many items, evenly spread from the first to the last; all of them for None."""
    if most is None or len(items) <= most:
        return tuple(items)
    at = np.linspace(0, len(items) - 1, most).round().astype(int)
    return tuple(items[i] for i in at)
