"""Sketches of models that do not exist, drawn to be as alike as real strangers are.

Embeddings are normal with the mean cosines of real models that were trained apart on one text, as
`measured` finds them, and of some width; heads, and layers' attention, are normal with the spread
of real ones within a model, about a centre with the spread of centres. docs/find.md says what that
can show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ckptforensics.arrays import Doubles, Ints
from ckptforensics.registry.sketch.record import By, Sketch, Tokens
from ckptforensics.registry.sketch.spectra import OF, RANKS, Of
from ckptforensics.registry.sketch.tokens import ridge_projection

# Factor on the mean likeness off the diagonal, with which strangers are as alike to real models as
# real ones trained apart are to each other (.11 to .22 by tokens).
_ALIKE = 4.0
_WIDTHS = (64, 128, 256, 576, 1_024, 2_048, 4_096)
_COUNTS: Mapping[Of, Sequence[int]] = {
    "heads": (8, 16, 72, 270, 512),
    "attention": (3, 4, 8, 16, 16),
}


@dataclass(frozen=True)
class Spread:
    """The mean of some spectra, and roots of covariances: of models' means, and about those."""

    centre: Doubles
    between: Doubles
    within: Doubles


@dataclass(frozen=True)
class Population:
    """What strangers are drawn from.

    Attributes
    ----------
    names : of the tokens
    roots : R with R R' the mean cosines of the tokens' embeddings
    spectra : how those of each kind spread
    """

    names: Mapping[By, Ints]
    roots: Mapping[By, Doubles]
    spectra: Mapping[Of, Spread]


def measured(sketches: Sequence[Sketch]) -> Population:
    """The population of which these sketches of independent models of one tokenizer are a sample.

    The mean of their projections stands for the mean cosines: both have the same directions.
    """
    names, roots = {}, {}
    for by in sketches[0].tokens:
        parts = [s.tokens[by] for s in sketches]
        if any(not np.array_equal(part.names, parts[0].names) for part in parts):
            raise ValueError("the sketches are not of one tokenizer")
        names[by] = parts[0].names
        mean = np.mean([part.likeness for part in parts], axis=0)
        values, vectors = np.linalg.eigh(_ALIKE * mean + np.eye(len(mean)))
        roots[by] = vectors * np.sqrt(np.maximum(values, 0.0))
    return Population(names, roots, {of: _spread([s.spectra[of] for s in sketches]) for of in OF})


def _spread(models: Sequence[Doubles]) -> Spread:
    means = np.stack([rows.mean(axis=0) for rows in models])
    apart = np.concatenate([rows - rows.mean(axis=0) for rows in models])
    return Spread(means.mean(axis=0), _root(np.cov(means.T)), _root(np.cov(apart.T)))


def stranger(population: Population, number: int) -> Sketch:
    """The stranger of that number, the same every time."""
    generator = np.random.default_rng([18, number])
    width = int(generator.choice(_WIDTHS))
    tokens = {
        by: Tokens(population.names[by], _likeness(root, width, generator))
        for by, root in population.roots.items()
    }
    heads, attention = (_drawn(population.spectra[of], _COUNTS[of], generator) for of in OF)
    # As shares of their spread.
    attention /= attention.std(axis=1, keepdims=True)
    return Sketch(tokens, {"heads": heads, "attention": attention})


def _drawn(spread: Spread, counts: Sequence[int], generator: np.random.Generator) -> Doubles:
    count = int(generator.choice(counts))
    centre = spread.centre + spread.between @ generator.standard_normal(RANKS)
    rows = centre + generator.standard_normal((count, RANKS)) @ spread.within.T
    return rows - rows.mean(axis=1, keepdims=True)


def _likeness(root: Doubles, width: int, generator: np.random.Generator) -> Doubles:
    rows = root @ _independent(root.shape[1], width, generator)
    rows -= rows.mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return ridge_projection(rows @ rows.T)


def _independent(tokens: int, width: int, generator: np.random.Generator) -> Doubles:
    """Normal embeddings; wide ones in a basis in which they are a triangle (Bartlett)."""
    if width <= tokens:
        return generator.standard_normal((tokens, width))
    found = np.tril(generator.standard_normal((tokens, tokens)), -1)
    np.fill_diagonal(found, np.sqrt(generator.chisquare(width - np.arange(tokens))))
    return found


def _root(covariance: Doubles) -> Doubles:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))
