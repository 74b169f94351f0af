"""Comparison documents written by hand: what renderers must show, without computing it."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from ckptforensics.results import (
    AlignmentRecord,
    ChangeRecord,
    ComparisonDocument,
    CriterionRecord,
    MergeRecord,
    ModelRecord,
    PairRecord,
    TreeEdge,
)
from ckptforensics.results.comparison import DirectionRecord

INITIALISED = "both models were initialised independently and their coordinates are exchangeable"
ORDER = ("order of neurons", "factors between up and down")
ROTATION = (*ORDER, "rotation of the residual basis")


def model(path: str, width: int = 576, layers: int = 4) -> ModelRecord:
    return ModelRecord(
        path=path,
        family="llama",
        family_source="config",
        hidden_size=width,
        num_layers=layers,
        files=(),
    )


def a_test(name: str, group: str = "exact", **more: Any) -> CriterionRecord:
    fields: dict[str, Any] = {
        "statistic": 0.9981,
        "log10_p": None,
        "floor": False,
        "invariant_to": ORDER,
        "seconds": 0.81,
        "bytes_read": 12_300_000,
        "skipped": None,
    }
    return CriterionRecord(name=name, group=group, **{**fields, **more})


TESTS = (
    a_test("direction max", log10_p=-4.0, floor=True, null=INITIALISED, bytes_read=0),
    a_test("direction sum", log10_p=-3.69897, floor=True, null=INITIALISED, bytes_read=0),
    a_test("gate rows", statistic=18432.0, log10_p=-4229.6, null=INITIALISED),
    a_test("gain rank", statistic=0.0123, log10_p=-0.3, null="gains are exchangeable"),
    a_test("embedding columns", statistic=None, skipped="no token is shared by its string"),
    a_test("neuron agreement", "agreement", invariant_to=ROTATION, note="512 neurons were sampled"),
    a_test("spectra", "correspondence", statistic=None),
    a_test("gate-up-down agreement", "correspondence", statistic=1.0),
)
CHANGES = tuple(
    ChangeRecord(
        tensor=f"model.layers.{i}.mlp.down_proj.weight",
        layer=i + 1,
        equal=0.5 if i else 1.0,
        relative=0.01 * i,
        rank=8 if i == 1 else None,
        zeros=(0.0, 0.5) if i == 2 else (0.0, 0.0),
        lattice=("BF16", "int4 in groups of 128") if i == 3 else (None, None),
    )
    for i in range(8)
)


def direction(arrow: str) -> DirectionRecord:
    """A direction of weights alone."""
    return DirectionRecord.of_weights(arrow, "rounding loses digits")


def a_pair(a: str, b: str, verdict: str = "derived", **more: Any) -> PairRecord:
    fields: dict[str, Any] = {
        "relation": "quantized" if verdict == "derived" else None,
        "direction": direction("a->b" if verdict == "derived" else "unknown"),
        "distance_deg": 0.3125,
        "layer": 3,
        "angles_deg": (1.5, None, 0.3125, 88.0),
        "layer_map": ((1, 1), (2, None), (3, 2), (4, 3)),
        "alignment": AlignmentRecord(kind="identity", held_out_fit=0.9987, found=("head order",)),
        "tests": TESTS,
        "changes": CHANGES,
        "reasons": ("gate rows agree: 18,432 of 18,432", "B lies on an int8 lattice, A does not"),
        "otherwise": ("independent, if the gate rows had agreed no more than by chance",),
        "compared": ("units and heads of all layers",),
        "not_compared": ("the output head: the weight at row 3, column 1 is nan",),
    }
    return PairRecord(a=a, b=b, verdict=verdict, **{**fields, **more})


def two(verdict: str = "derived", a: str = "base", b: str = "tuned", **more: Any):
    """A comparison of two models."""
    pair = a_pair(a, b, verdict, **more)
    distance = pair.distance_deg
    return ComparisonDocument(
        tool_version="1",
        level="default",
        models=(model(a), model(b)),
        pairs=(pair,),
        matrix_deg=((0.0, distance), (distance, 0.0)),
        clusters=((a, b),),
        tree=(TreeEdge(a=a, b=b, directed=True, relation="quantized", length=distance),),
        left_out=("all but 512 neurons a layer",),
    )


def several(names: tuple[str, ...] = ("base", "tuned", "stranger", "other width")):
    """A comparison of four models: a derived one, a stranger, and one of another width."""
    base, tuned, stranger, other = names
    verdicts = {
        (base, tuned): "derived",
        (base, stranger): "independent",
        (base, other): "not comparable",
        (tuned, stranger): "independent",
        (tuned, other): "inconclusive",
        (stranger, other): "related",
    }
    degrees: dict[tuple[str, str], float | None] = dict(
        zip(verdicts, [0.3125, 84.5, None, 84.25, 71.5, 40.0], strict=True)
    )
    matrix = [[0.0 if a == b else None for b in names] for a in names]
    for (a, b), value in degrees.items():
        i, j = names.index(a), names.index(b)
        matrix[i][j] = matrix[j][i] = value
    full = np.array([[90.0 if x is None else x for x in row] for row in matrix])
    return ComparisonDocument(
        tool_version="1",
        level="thorough",
        models=tuple(model(name, 960 if name == other else 576) for name in names),
        pairs=tuple(
            a_pair(a, b, verdicts[a, b], distance_deg=degrees[a, b])
            for a, b in combinations(names, 2)
        ),
        merges=(
            MergeRecord(
                model=tuned,
                parents=(base, stranger),
                weights=(0.7, 0.3),
                interval=((0.65, 0.75), (0.25, 0.35)),
                by_layer=((0.7, 0.3),),
                gain=0.93,
                method="average",
            ),
        ),
        matrix_deg=tuple(map(tuple, matrix)),
        linkage=tuple(map(tuple, linkage(squareform(full), "average").tolist())),
        clusters=((base, tuned), (stranger, other)),
        tree=(
            TreeEdge(a=base, b=tuned, directed=True, relation="quantized", length=0.3125),
            TreeEdge(a=stranger, b=other, directed=False, relation=None, length=None),
        ),
    )


def empty() -> ComparisonDocument:
    """A comparison of one model with nothing."""
    return ComparisonDocument(
        tool_version="1",
        level="fast",
        models=(model("alone"),),
        pairs=(),
        matrix_deg=((0.0,),),
        clusters=(),
        tree=(),
    )


# Nothing in a name may become markup, a formula, a control sequence or mathematics.
ODD_NAMES = ("<script>alert(1)</script>&'", "=cmd", '"quoted", twice', "\x1b[31mred\n")
