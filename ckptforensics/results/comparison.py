"""The result of `compare`: pairs of models, the tests that were run on them, and a tree of all."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Name

Verdict = Literal[
    "identical",
    "re-parameterised",
    "derived",
    "related",
    "independent",
    "inconclusive",
    "not comparable",
]
# Verdicts of models that share a training run, the closest first.
RELATIVES: tuple[Verdict, ...] = ("identical", "re-parameterised", "derived", "related")
Relation = Literal[
    "finetune",
    "adapter",
    "quantized",
    "pruned",
    "merge",
    "depth-changed",
    "width-changed",
    "upcycled",
]
# Which parts are shared where the rest has nothing in common.
Shares = Annotated[str, Field(pattern="^shares: ")]
Arrow = Literal["a->b", "b->a", "unknown"]
Strength = Literal["cryptographic", "forgeable", "none"]
AlignmentKind = Literal["identity", "signed-permutation", "rotation", "none"]
Level = Literal["fast", "default", "thorough"]
Group = Literal["exact", "agreement", "correspondence", "change"]

# So many random directions lie above `random_angle_deg`.
RANDOM_SHARE = 0.99


class CriterionRecord(Frozen):
    """One criterion applied to one pair.

    `group` says what it shows: `exact` in the stored basis, `agreement` of neurons,
    `correspondence` after the recovered map, `change` of the weights. `log10_p` is null where a
    criterion has no p-value, and `floor` says that it is the smallest its permutations can give.
    `null` says in words under which hypothesis p holds. `profile` has the statistic layer by layer,
    null where there is none. `skipped` says why a criterion was not applied. `scale` says in words
    which range the statistic has and which end of it relatives are at. `limits`, of criteria that
    decide by their statistic, are the value from which on it is no longer that of independent
    models, and the one from which on it shows relatives.
    """

    name: str
    group: Group
    statistic: Finite | None
    log10_p: Finite | None
    floor: bool
    invariant_to: tuple[str, ...]
    seconds: Finite
    bytes_read: int
    skipped: str | None
    null: str | None = None
    profile: tuple[Finite | None, ...] = ()
    note: str | None = None
    scale: str | None = None
    limits: tuple[Finite, Finite] | None = None

    @property
    def shows_relatives(self) -> bool:
        """Whether its statistic decides, and is that of relatives."""
        return (
            self.limits is not None
            and self.statistic is not None
            and self.statistic >= self.limits[1]
        )


class AlignmentRecord(Frozen):
    """The map from A's residual coordinates to B's, if one was found.

    `held_out_fit` is the mean cosine of tokens that the map was not fitted on; null where none was
    tried. `found` lists what else was undone or seen: neuron order, heads, gains, scales.
    """

    kind: AlignmentKind
    held_out_fit: Finite | None
    found: tuple[str, ...] = ()


class DirectionRecord(Frozen):
    """Which of two models the weights are consistent with having come first.

    `strength` says what it takes to forge that: `cryptographic` needs an external timestamp, a
    signature or a one-way construction, which weights alone never are; what weights show is
    `forgeable`, and where they show nothing it is `none`. `why` is one sentence: what shows it and
    what would forge it.
    """

    arrow: Arrow
    strength: Strength
    why: str

    @model_validator(mode="after")
    def _known(self) -> DirectionRecord:
        if (self.arrow == "unknown") != (self.strength == "none"):
            raise ValueError("a direction that is unknown has the strength none, another has one")
        return self

    @classmethod
    def of_weights(cls, arrow: Arrow, why: str) -> DirectionRecord:
        """What weights alone are consistent with."""
        strength: Strength = "none" if arrow == "unknown" else "forgeable"
        return cls(arrow=arrow, strength=strength, why=why)


class ChangeRecord(Frozen):
    """How one tensor of B differs from A's, in the same basis or after the map was undone.

    `equal` is the share of elements that are equal, `relative` |B - A| / |A|, `rank` the effective
    rank of the difference (null where it was not looked for or is full), `zeros` the share of
    zeros in A and in B, `lattice` the rounding found in A and in B.
    """

    tensor: str
    layer: int | None
    equal: Finite
    relative: Finite
    rank: int | None
    zeros: tuple[Finite, Finite]
    lattice: tuple[str | None, str | None] = (None, None)


class PairRecord(Frozen):
    """What is known of two models.

    `distance_deg` is the paper's: the smallest acute angle between u1 of corresponding layers, at
    `layer` of A; `angles_deg` are all of them, null where a layer has no partner. They are null
    where the widths differ. `relation` may also be `shares: ` and the parts that are shared without
    one model being made from the other. `reasons` carried the verdict, `otherwise` says what would
    have changed it. `compared` and `not_compared` say what of relatives' weights and settings the
    verdict rests on, and what was not looked at or could not be, with its reason.
    """

    a: Name
    b: Name
    verdict: Verdict
    relation: Relation | Shares | None
    direction: DirectionRecord
    distance_deg: Finite | None
    layer: int | None
    angles_deg: tuple[Finite | None, ...]
    layer_map: tuple[tuple[int | None, int | None], ...]
    alignment: AlignmentRecord
    tests: tuple[CriterionRecord, ...]
    changes: tuple[ChangeRecord, ...] = ()
    reasons: tuple[str, ...]
    otherwise: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()

    @property
    def angle_layers(self) -> list[int]:
        """The layer of A that each of `angles_deg` belongs to."""
        layers = [a for a, _ in self.layer_map if a is not None]
        count = len(self.angles_deg)
        return layers if len(layers) == count else list(range(1, count + 1))

    @property
    def aligned_deg(self) -> tuple[float | None, ...]:
        """Angles between u1 after the map, for each layer of A; empty where they were not found."""
        return next((t.profile for t in self.tests_run if t.name == "aligned angles"), ())

    @property
    def drawn_deg(self) -> float | None:
        """The distance in pictures: of relatives that after the map where it is the smaller.

        None where models are not comparable, or have no angle.
        """
        if self.verdict == "not comparable":
            return None
        angles = [self.distance_deg]
        if self.verdict in RELATIVES:
            angles += self.aligned_deg
        return min((angle for angle in angles if angle is not None), default=None)

    @property
    def largest_changes(self) -> list[ChangeRecord]:
        """The tensors that differ, largest relative change first."""
        changed = [c for c in self.changes if c.equal < 1 or c.relative > 0]
        return sorted(changed, key=lambda c: -c.relative)

    @property
    def tests_run(self) -> list[CriterionRecord]:
        """The tests that were not skipped."""
        return [test for test in self.tests if test.skipped is None]


class MergeRecord(Frozen):
    """One model as a mixture of others: weights that sum to one.

    `weights` has one entry a parent, `interval` their 95 % bootstrap intervals, `by_layer` the
    weights of each layer, `gain` the share of the distance to the best single parent that the
    mixture takes away, `method` what the residual looks like. `only` is false where one of the
    parents may as well be the mixture of the others, with weights outside 0 to 1.
    """

    model: Name
    parents: tuple[Name, ...]
    weights: tuple[Finite, ...]
    interval: tuple[tuple[Finite, Finite], ...]
    by_layer: tuple[tuple[Finite, ...], ...]
    gain: Finite
    method: Literal["average", "ties", "dare", "unknown"]
    only: bool = True


class TreeEdge(Frozen):
    """An edge of the proposed tree; `directed` from a to b where the weights show who came first.

    `length` is the pair's distance in degrees where it has one.
    """

    a: Name
    b: Name
    directed: bool
    relation: Relation | Shares | None
    length: Finite | None


class Versions(Frozen):
    """Versions of what numbers depend on."""

    ckptforensics: str
    python: str
    numpy: str
    scipy: str


class RunRecord(Frozen):
    """When, how and with what a comparison was made, for a report that is handed on.

    `date` is in UTC (ISO 8601), `command` the command line as a shell takes it, `versions` those of
    ckptforensics, python, numpy and scipy, `cores` those that were used, `platform` system,
    release and processor.
    """

    date: str
    command: Name
    versions: Versions
    cores: int
    platform: str


class ComparisonDocument(Document):
    """The result of `compare`.

    `left_out` says what the level did not look at. `matrix_deg` has the paper's distances between
    all models, null where there is none; `linkage` is scipy's of the dendrogram (average linkage,
    over pairs of models), `clusters` the groups of models that are related. `run` says how it was
    made; null where it was made from Python.
    """

    schema_version: Literal["3.0"] = "3.0"
    kind: Literal["comparison"] = "comparison"
    level: Level
    models: tuple[ModelRecord, ...]
    pairs: tuple[PairRecord, ...]
    merges: tuple[MergeRecord, ...] = ()
    matrix_deg: tuple[tuple[Finite | None, ...], ...]
    linkage: tuple[tuple[Finite, Finite, Finite, Finite], ...] = ()
    clusters: tuple[tuple[Name, ...], ...]
    tree: tuple[TreeEdge, ...]
    left_out: tuple[str, ...] = ()
    run: RunRecord | None = None

    @model_validator(mode="after")
    def _square(self) -> ComparisonDocument:
        count = len(self.models)
        if len(self.matrix_deg) != count or any(len(row) != count for row in self.matrix_deg):
            raise ValueError("matrix_deg must have one row and one column a model")
        return self

    @property
    def names(self) -> list[str]:
        """What pairs, clusters and tree call the models, in their order.

        That need not be their paths: a model may be there twice, or be a saved signature of a model
        that was elsewhere. The pairs are all combinations in order, else the paths must do.
        """
        pairs = [(pair.a, pair.b) for pair in self.pairs]
        found = [pairs[0][0], *(b for _, b in pairs[: len(self.models) - 1])] if pairs else []
        if len(found) == len(self.models) and pairs == list(combinations(found, 2)):
            return found
        return [model.path for model in self.models]

    @property
    def pairs_by_place(self) -> dict[frozenset[int], PairRecord]:
        """The pairs by the places of their models among the models."""
        place = {name: i for i, name in enumerate(self.names)}
        return {
            frozenset((place[pair.a], place[pair.b])): pair
            for pair in self.pairs
            if pair.a in place and pair.b in place
        }

    def width_of(self, pair: PairRecord) -> int | None:
        """Width of the residual stream of A, None if A is not among the models."""
        widths = dict(zip(self.names, (m.hidden_size for m in self.models), strict=True))
        return widths.get(pair.a)

    @property
    def seconds(self) -> float:
        """What all tests took."""
        return sum(test.seconds for pair in self.pairs for test in pair.tests)

    @property
    def bytes_read(self) -> int:
        """What all tests read of the weights."""
        return sum(test.bytes_read for pair in self.pairs for test in pair.tests)


def random_angle_deg(width: int) -> float | None:
    """The acute angle, in degrees, above which `RANDOM_SHARE` of pairs of random directions lie.

    Directions are uniform on the sphere in `width` dimensions; sqrt(n) c / sqrt(1 - c^2) of their
    cosine c has Student's t distribution with n = width - 1 degrees of freedom. None for width 1.
    """
    if width < 2:
        return None
    from scipy.special import stdtrit

    t = float(stdtrit(width - 1, (1 + RANDOM_SHARE) / 2))
    return math.degrees(math.acos(t / math.hypot(t, math.sqrt(width - 1))))
