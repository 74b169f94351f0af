"""The tokens that two models share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ckptforensics.arrays import Ints
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream

# Fewer shared strings than this are those of any two tokenizers: digits, letters, controls.
LEAST_SHARED = 64


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


def shared_tokens(pair: Pair) -> SharedTokens:
    """Tokens of both models, in a random order that depends on the seed and the strings only.

    They are matched by their strings. Where a vocabulary is missing, tokens of the same id are
    taken for the same if the models have as many embeddings (`by_string` is then False).

    Raises
    ------
    NotApplicable
        if they share too few, or whether they do is not known.
    """
    sizes = [model.vocabulary_size for model in pair.models]
    a, b = (model.vocabulary for model in pair.models)
    generator = pair.generator(Stream.SHARED_TOKENS)
    if a is None or b is None:
        if sizes[0] != sizes[1]:
            raise NotApplicable(
                f"which tokens are shared is not known: {_without(pair.models)} no vocabulary that "
                f"can be read, and the models have {sizes[0]:,} and {sizes[1]:,} embeddings"
            )
        ids = generator.permutation(sizes[0])
        return SharedTokens(ids, ids, by_string=False)
    both = [
        (a[text], b[text])
        for text in sorted(a.keys() & b.keys())
        if a[text] < sizes[0] and b[text] < sizes[1]
    ]
    if len(both) < LEAST_SHARED:
        raise NotApplicable(
            f"the vocabularies share {len(both)} strings, fewer than {LEAST_SHARED}"
        )
    ids = np.array(both, np.int64)[generator.permutation(len(both))]
    return SharedTokens(ids[:, 0].copy(), ids[:, 1].copy(), by_string=True)


def _without(models: Iterable[Model]) -> str:
    names = [model.name for model in models if model.vocabulary is None]
    return f"{names[0]} has" if len(names) == 1 else "both have"
