"""A zoo of tiny models whose lineage is known, and what a comparison of any two should say.

    python -m tools.zoo DIR     write the models that are not committed

The trained ones are committed in `fixtures/zoo` (`tools/make_zoo.py` made them); the others
come from these without training, from fixed seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import get_args

import numpy as np

from ckptforensics.results.comparison import Arrow as Direction
from ckptforensics.results.comparison import Relation as Kind
from ckptforensics.results.comparison import Verdict
from tools import launder, transforms
from tools.transforms import Model

ZOO = Path(__file__).parents[1] / "fixtures" / "zoo"

TRAINED: tuple[str, ...] = (
    "seed0",
    "seed1",
    "seed2",
    "seed0-early",
    "finetune",
    "finetune-long",
    "continued",
    "lora",
    "chain",
    "experts",
)


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes
    ----------
    parents : the models it was made from
    change : a `Kind`; `identical` or `re-parameterised` if its function is its parent's;
        `vocabulary` or `embeddings` for changes that are of no kind
    how : one line for people
    make : from the zoo's models by name; None for trained models
    dtype : what it is stored in
    """

    parents: tuple[str, ...]
    change: str
    how: str
    make: Callable[[dict[str, Model]], Model] | None = None
    dtype: str = "BF16"


@dataclass(frozen=True)
class Relation:
    """What a comparison of two models should say.

    Attributes
    ----------
    kind : None where no single kind describes the change
    direction : which came first, where the weights of the two show it
    given : further models without which kind and direction cannot be told, nor `related` from
        `derived`: a merge's other ingredients, or the nearest common ancestor
    """

    a: str
    b: str
    verdict: Verdict
    kind: Kind | None = None
    direction: Direction = "unknown"
    given: tuple[str, ...] = ()


# Changes whose traces in the weights say which of the two models came later. The experts of the zoo
# were trained after they were copied, with all else: the dense model might be a sibling.
_ONE_WAY = ("adapter", "quantized", "pruned", "merge", "vocabulary")
_SAME_FUNCTION = ("identical", "re-parameterised")

_TUNED = ("finetune", "finetune-long")


def _one(change: Callable[[Model], Model]) -> Callable[[dict[str, Model]], Model]:
    return lambda models: change(models["seed0"])


def _laundered(kind: str, parent: str = "seed0") -> Callable[[dict[str, Model]], Model]:
    return lambda models: launder.EXACT[kind](models[parent], np.random.default_rng(7))


def _merged(
    merge: Callable[[Model, tuple[Model, ...]], Model],
) -> Callable[[dict[str, Model]], Model]:
    return lambda models: merge(models["seed0"], tuple(models[name] for name in _TUNED))


_TRAINED_FROM = {
    "seed0": Origin(("seed0-early",), "finetune", "the rest of the same run"),
    "finetune": Origin(("seed0",), "finetune", "tuned on source code"),
    "finetune-long": Origin(("seed0",), "finetune", "tuned on docstrings, twice as long"),
    "continued": Origin(("seed0",), "finetune", "pre-trained once more, on mixed text"),
    "lora": Origin(("seed0",), "adapter", "adapter of rank 4 on every map, merged"),
    "chain": Origin(("finetune",), "finetune", "tuned on more source code"),
    "experts": Origin(("seed0",), "upcycled", "FFNs copied to 4 experts, then trained"),
}

_MADE = {
    "average": Origin(
        _TUNED, "merge", "mean of the two", lambda m: transforms.average(*(m[n] for n in _TUNED))
    ),
    "ties": Origin(("seed0", *_TUNED), "merge", "TIES, a fifth kept", _merged(transforms.ties)),
    "dare": Origin(("seed0", *_TUNED), "merge", "DARE, half dropped", _merged(transforms.dare)),
    "int8": Origin(("seed0",), "quantized", "8 bits a row and back", _one(transforms.int8), "F16"),
    "q4": Origin(("seed0",), "quantized", "GGUF's Q4_0 and back", _one(transforms.q4), "F16"),
    "prune50": Origin(("seed0",), "pruned", "smaller half set to 0", _one(transforms.prune)),
    "prune24": Origin(
        ("seed0",), "pruned", "two of every four set to 0", _one(transforms.prune_2_of_4)
    ),
    "drop-layer": Origin(
        ("seed0",), "depth-changed", "second layer removed", _one(transforms.drop_layer)
    ),
    "upscaled": Origin(("seed0",), "depth-changed", "layers 1 2 3 2 3 4", _one(transforms.upscale)),
    "frankenmerge": Origin(
        _TUNED,
        "depth-changed",
        "layers 1 2 of the one, 2 3 4 of the other",
        lambda m: transforms.interleave(*(m[n] for n in _TUNED)),
    ),
    "narrow": Origin(
        ("seed0",),
        "width-changed",
        "a quarter of the coordinates and a third of the neurons removed",
        _one(transforms.narrow),
    ),
    "narrow-ffn": Origin(
        ("seed0",), "width-changed", "a third of the neurons removed", _one(transforms.narrow_ffn)
    ),
    "vocabulary": Origin(
        ("seed0",), "vocabulary", "64 rows appended", _one(transforms.extend_vocabulary)
    ),
    "redrawn-embeddings": Origin(
        ("seed0",), "embeddings", "embeddings drawn anew", _one(transforms.redraw_embeddings)
    ),
    # Rounded to F16 the two are equal: only BF16's tiniest numbers are not F16's.
    "half": Origin(("seed0",), "re-parameterised", "BF16 to F16", lambda m: m["seed0"], "F16"),
    # Of another seed than the embeddings drawn anew: those would be the same numbers.
    "random": Origin(
        (),
        "",
        "same configuration, random weights",
        _one(lambda model: transforms.random(model, seed=1)),
    ),
}
_LAUNDERED = {
    f"laundered-{kind}": Origin(
        ("seed0",),
        "re-parameterised",
        f"`{kind}` of `launder.py`",
        _laundered(kind),
        "F32",
    )
    for kind in launder.EXACT
}

_LAUNDERED["laundered-finetune"] = Origin(
    ("finetune",), "re-parameterised", "`all` of it", _laundered("all", "finetune"), "F32"
)
_LAUNDERED["laundered-noisy"] = Origin(
    ("laundered-all",),
    "noise",
    "that with noise of 2%",
    lambda models: launder.noise(models["laundered-all"], 0.02),
    "F32",
)

ORIGINS: dict[str, Origin] = {**_TRAINED_FROM, **_MADE, **_LAUNDERED}
"""Where each model comes from that comes from another, and how the untrained ones are made."""


def zoo(folder: Path) -> dict[str, Path]:
    """All models by name: the committed ones where they are, the others written into a folder.

    Parameters
    ----------
    folder : created if missing; about 40 MB
    """
    paths = {name: ZOO / name for name in TRAINED}
    models = {name: transforms.read(path) for name, path in paths.items()}
    for name, origin in ORIGINS.items():
        if origin.make is not None:
            models[name] = origin.make(models)
            paths[name] = transforms.write(models[name], folder / name, origin.dtype)
    return paths


def relation(a: str, b: str) -> Relation:
    """What a comparison of two models of the zoo should say."""
    same_a, laundered_a = _same_function(a)
    same_b, laundered_b = _same_function(b)
    laundered = laundered_a or laundered_b
    if same_a == same_b:
        return Relation(a, b, "re-parameterised" if laundered else "identical")
    if same_a in _ancestors(same_b) or same_b in _ancestors(same_a):
        return _derived(a, b, same_a, same_b, laundered)
    common = _ancestors(same_a) & _ancestors(same_b)
    if common:
        nearest = max(common, key=lambda name: (len(_ancestors(name)), name))
        return Relation(a, b, "related", given=(nearest,))
    return Relation(a, b, "independent")


def _derived(a: str, b: str, same_a: str, same_b: str, laundered: bool) -> Relation:
    """The relation of two models of which one descends from the other, whichever it is."""
    arrow: Direction = "a->b" if same_a in _ancestors(same_b) else "b->a"
    first, last = (same_a, same_b) if arrow == "a->b" else (same_b, same_a)
    changes = _changes(first, last)
    if len(changes) != 1:
        return Relation(a, b, "derived")
    (change,) = changes
    others = tuple(p for p in ORIGINS[last].parents if p != first) if change == "merge" else ()
    shown = change in _ONE_WAY and not laundered
    kind = change if change in get_args(Kind) else None
    return Relation(a, b, "derived", kind, arrow if shown else "unknown", others)


def _same_function(name: str) -> tuple[str, bool]:
    """The ancestor whose function the model has, and whether other weights compute it."""
    origin = ORIGINS.get(name)
    if origin is None or origin.change not in _SAME_FUNCTION:
        return name, False
    first, laundered = _same_function(origin.parents[0])
    return first, laundered or origin.change == "re-parameterised"


def _ancestors(name: str) -> set[str]:
    parents = ORIGINS[name].parents if name in ORIGINS else ()
    return set(parents).union(*(_ancestors(parent) for parent in parents))


def _changes(first: str, last: str) -> set[str]:
    """The changes on the way from an ancestor, but for those that left the function alone.

    Of several ways the shortest counts: what was merged with its own base is a merge of it.
    """
    if first == last:
        return set()
    origin = ORIGINS[last]
    change = set() if origin.change in _SAME_FUNCTION else {origin.change}
    ways = [p for p in origin.parents if p == first or first in _ancestors(p)]
    return change | min((_changes(first, parent) for parent in ways), key=len)


def _pairs() -> Iterator[tuple[str, str]]:
    """All pairs of models that are not laundered, and those laundered with a few."""
    plain = [*TRAINED, *_MADE]
    yield ("seed0", "seed0")
    yield from combinations(plain, 2)
    yield from product(("seed0", "finetune", "q4", "seed1"), _LAUNDERED)


RELATIONS: tuple[Relation, ...] = tuple(relation(a, b) for a, b in _pairs())
"""What comparisons are tested with."""


if __name__ == "__main__":
    for made in zoo(Path(sys.argv[1])).values():
        print(made)
