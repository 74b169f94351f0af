"""How alike a model sees a few tokens, whatever basis, scale and order its files are in.

Of the sampled tokens' embeddings E, centred and of unit length, the ridge projection
E (E'E + cI)^-1 E' is kept: no rotation, permutation or factor moves it. The plain cosines E E' do
not do: models that were trained apart on one text share their few large directions (cosines of
strangers correlate up to .94), which the ridge flattens (docs/find.md has both).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np

from ckptforensics.arrays import Doubles, Floats, Ints
from ckptforensics.errors import NotApplicable
from ckptforensics.registry.sketch.record import By

# Tokens of a sketch: one in each of so many classes of digests, so that a vocabulary that was
# extended keeps nearly all of them. Ids say less, and a record has at most 100 kB.
PLACES: Mapping[By, int] = MappingProxyType({"strings": 256, "ids": 160})
# Fewer tokens say too little.
LEAST = 48
# What is added to the eigenvalues, which are 1 in the mean.
RIDGE = 0.3
# Without strings, tokens are those of low ids, which lie close together in the file.
_LOWEST_IDS = 4_096
# Printable ASCII.
_FIRST, _LAST = " ", "~"


def named_by_strings(vocabulary: Mapping[str, int], size: int) -> tuple[Ints, Ints]:
    """The tokens of a sketch by their strings: (digests in increasing order, ids).

    Those of one or two ASCII characters: every tokenizer has many, byte-level BPE has them at low
    ids, where a server is asked for few ranges, and training sees them often.
    """
    short = ((text, at) for text, at in vocabulary.items() if at < size and _is_short(text))
    digests, ids = _chosen(short, PLACES["strings"])
    if len(ids) < LEAST:
        known = ((text, at) for text, at in vocabulary.items() if at < size)
        digests, ids = _chosen(known, PLACES["strings"])
    return digests, ids


def named_by_ids(size: int) -> tuple[Ints, Ints]:
    """The tokens of a sketch by their ids: (digests in increasing order, ids)."""
    named = ((f"\0id {at}", at) for at in range(min(size, _LOWEST_IDS)))
    return _chosen(named, PLACES["ids"])


def likeness(rows: Floats) -> Doubles:
    """The ridge projection of (tokens, width) embeddings, with zeros on its diagonal.

    Raises
    ------
    NotApplicable
        if too few of the embeddings differ from their mean.
    """
    rows = rows.astype(np.float64)
    rows = rows - rows.mean(axis=0)
    sizes = np.linalg.norm(rows, axis=1)
    told = sizes > 1e-6 * sizes.max(initial=0)
    if told.sum() < LEAST:
        raise NotApplicable("the embeddings of the sampled tokens do not differ")
    rows[told] /= sizes[told, None]
    rows[~told] = 0
    return ridge_projection(np.asarray(rows @ rows.T, np.float64))


def ridge_projection(gram: Doubles) -> Doubles:
    """G (G + cI)^-1 of products (tokens, tokens) whose eigenvalues are made 1 in the mean.

    Its diagonal is zero, since it says how large the embeddings are.
    """
    ridge = RIDGE * np.eye(len(gram))
    # As it is the identity less c (G + cI)^-1.
    found = -RIDGE * np.linalg.inv(gram * (len(gram) / np.trace(gram)) + ridge)
    np.fill_diagonal(found, 0)
    return np.asarray(found)


def _is_short(text: str) -> bool:
    return 1 <= len(text) <= 2 and all(_FIRST <= c <= _LAST for c in text)


def _chosen(tokens: Iterable[tuple[str, int]], places: int) -> tuple[Ints, Ints]:
    best: dict[int, tuple[int, int]] = {}
    for text, at in tokens:
        data = text.encode("utf-8", "surrogatepass")
        digest = int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little")
        place = digest % places
        best[place] = min(best.get(place, (digest, at)), (digest, at))
    found = np.array(sorted(best.values()), np.int64).reshape(-1, 2)
    return found[:, 0].copy(), found[:, 1].copy()
