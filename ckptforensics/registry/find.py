"""Find whose copy a model is, among all models of a catalog.

Three steps, each of which leaves few to the next: products with the vectors of all sketches, exact
values for the nearest sketches, and comparisons of weights (`ckpt compare`) with what is near. Only
the last says whose model it is; nearness alone never does.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ckptforensics.arrays import Ints
from ckptforensics.checkpoint import Checkpoint, open_checkpoint
from ckptforensics.errors import ResultError, UsageError
from ckptforensics.jobs.memory import default_memory
from ckptforensics.jobs.processes import Job, run_jobs
from ckptforensics.lineage.compare import lacks_config
from ckptforensics.lineage.correspondence.hiding import padded
from ckptforensics.lineage.models import Model
from ckptforensics.progress import Progress, running
from ckptforensics.quantities import counted
from ckptforensics.registry.catalog import database
from ckptforensics.registry.catalog.sketches import Vectors, open_vectors, sketches
from ckptforensics.registry.catalog.snapshot import snapshot
from ckptforensics.registry.comparisons import compare_arguments, compared
from ckptforensics.registry.sketch.features import features
from ckptforensics.registry.sketch.make import sketch
from ckptforensics.registry.sketch.record import Sketch, sketch_of
from ckptforensics.registry.sketch.score import LIMITS, score_of, scores
from ckptforensics.registry.standing import is_unchanged
from ckptforensics.results import PairRecord, load_document
from ckptforensics.results.comparison import RELATIVES, Level
from ckptforensics.results.find import Channel, Channels, FindDocument, FindMatch
from ckptforensics.results.records import Skipped
from ckptforensics.results.sketch import SketchDocument
from ckptforensics.version import __version__

# Sketches near by the products, of which exact values are computed, at least.
SHORTLIST = 100
# Why some models of a catalog are not searched by attention.
_LACKING = (
    "sketches hold none, or were made before it was kept: 'ckpt catalog add' makes them again"
)


@dataclass(frozen=True)
class FindOptions:
    """How a model is looked for.

    Attributes
    ----------
    catalog : the catalog's file
    most : candidates that are compared and shown
    level : of the comparisons
    compare : whether candidates are compared; else they are only named
    workers, memory : comparisons at a time, and bytes that all of them may use together
    seconds : after which a comparison is ended
    offline : ask no server
    config, base : of the model that is looked for, as of `open_checkpoint`
    strict : refuse a family that is only inferred from names and shapes
    """

    catalog: Path
    most: int = 20
    level: Level = "default"
    compare: bool = True
    workers: int = 1
    memory: int = field(default_factory=default_memory)
    seconds: float | None = None
    offline: bool = False
    config: Path | None = None
    base: Path | None = None
    strict: bool = False


@dataclass(frozen=True)
class _Model:
    """A model of the catalog: its row, and its weight files' names and states when it was read."""

    row: sqlite3.Row
    nbytes: int
    weights: Sequence[tuple[str, str]]

    def problem(self, options: FindOptions) -> str | None:
        """Why its weights cannot be compared, None if they can."""
        if self.row["opens"] is None or self.row["state"] == "vanished":
            return "neither its weights nor its signature is at hand"
        name, store, path = (self.row[key] for key in ("name", "store", "path"))
        opens = json.loads(self.row["opens"])
        if not is_unchanged(store, opens, path, self.weights, offline=options.offline):
            return f"{name} has changed since it was catalogued: 'ckpt catalog add {path}'"
        return None


@dataclass(frozen=True)
class _Candidate:
    """A sketch that is near, and the models that have it, the one that can be compared first.

    `problem` is why the weights of that one cannot be compared, None if they can.
    """

    score: float
    channels: Mapping[Channel, float]
    models: Sequence[_Model]
    problem: str | None = None


def find(
    model: str | SketchDocument, options: FindOptions, *, progress: Progress | None = None
) -> FindDocument:
    """Which models of a catalog a model is a relative of.

    Parameters
    ----------
    model : a checkpoint, or a sketch, saved or at hand, with which nothing can be compared
    progress : told of layers and comparisons

    Raises
    ------
    UsageError
        if there is no such model or catalog, or a sketch is given with what opens a model.
    CkptError
        if one of them cannot be read.
    """
    began = time.monotonic()
    of_sketch = isinstance(model, SketchDocument) or _is_saved(model)
    if of_sketch and (options.config or options.base):
        name = "--config" if options.config else "--base"
        raise UsageError(f"{name} is of a model, and this is a sketch of one", path=str(model))
    # A catalog that cannot be read is told before a sketch is made.
    snapshot(options.catalog, lambda db: None)
    # The weights, where there are any to compare.
    checkpoint: Checkpoint | None = None
    if isinstance(model, SketchDocument):
        document, model = model, model.model.path
    elif of_sketch:
        document = _saved_sketch(model)
    else:
        checkpoint = open_checkpoint(
            model,
            config=options.config,
            base=options.base,
            offline=options.offline,
            strict=options.strict,
        )
        document = sketch(checkpoint, progress=progress)
    searching = time.monotonic()
    query = _arrays(model, document)

    def search(db: sqlite3.Connection) -> tuple[int, list[_Candidate], list[Skipped], int]:
        vectors = open_vectors(db, options.catalog)
        near, refused = _search(db, vectors, query, options.most)
        (without,) = db.execute("SELECT count(*) FROM models WHERE sketch IS NULL").fetchone()
        passed = _refused(db, refused)
        if lacking := _of_models(db, vectors.lacking("attention", "heads")):
            what = f"the attention of {counted(lacking, 'catalogued model')}"
            passed.append(Skipped(what=what, reason=_LACKING))
        return len(vectors), _candidates(db, near), passed, without

    (searched, candidates, passed, without), _ = snapshot(options.catalog, search)
    search_seconds = time.monotonic() - searching
    shown = candidates[: options.most]
    pairs: dict[int, PairRecord | str] = {}
    if checkpoint is not None and options.compare:
        shown = [_that_stands(candidate, options) for candidate in shown]
        pairs = _compared(model, checkpoint, shown, options, progress)
    elif checkpoint is not None:
        pairs = dict.fromkeys(range(len(shown)), "no comparison was asked for")
    matches = [_match(c, pairs.get(i), of_sketch) for i, c in enumerate(shown)]
    matches.sort(key=_rank)
    answer, reasons = _answer(matches, len(candidates), searched, query)
    if answer == "none" and passed:
        answer = "inconclusive"
        reasons = [f"{row.what} was passed over: {row.reason}" for row in passed]
    if answer == "none" and (why := _hidden(model, checkpoint)):
        answer, reasons = "inconclusive", [why]
    return FindDocument(
        tool_version=__version__,
        model=document.model,
        catalog=str(options.catalog),
        level=options.level,
        answer=answer,
        matches=tuple(matches),
        searched=searched,
        without=without,
        candidates=len(candidates),
        reasons=tuple(reasons),
        skipped=(*document.skipped, *passed),
        search_seconds=search_seconds,
        seconds=time.monotonic() - began,
    )


def _hidden(model: str, checkpoint: Checkpoint | None) -> str | None:
    """Why no candidate does not mean that there is none; None if it does."""
    if checkpoint is None:
        return (
            "a sketch does not tell whether directions that nothing writes to were added to the "
            "stream, which hides a copy: give the model"
        )
    return padded(Model(model, checkpoint))


def _is_saved(model: str) -> bool:
    """Whether it is a saved result; an index of shards is a model."""
    return model.endswith(".json") and not model.endswith(".index.json")


def _saved_sketch(model: str) -> SketchDocument:
    """The sketch in a file; UsageError if another result is in it."""
    found = load_document(model)
    if not isinstance(found, SketchDocument):
        raise UsageError(
            f"this is a saved {found.kind} and no sketch",
            path=model,
            hint="give a checkpoint, or what 'ckpt sketch -o FILE.json' wrote",
        )
    return found


def _arrays(model: str, document: SketchDocument) -> Sketch:
    try:
        return sketch_of(document.found)
    except ResultError as problem:
        raise ResultError(problem.message, path=model, hint="make the sketch again") from None


def _search(
    db: sqlite3.Connection, vectors: Vectors, query: Sketch, most: int
) -> tuple[list[tuple[int, float, Mapping[Channel, float]]], Mapping[int, str]]:
    """Number, score and channels of the sketches that are near.

    And the numbers of those that hold what no sketch holds, as far as one met them, with why.
    """
    numbers = vectors.nearest(features(query), LIMITS, max(SHORTLIST, 2 * most))
    found = []
    readable, refused = sketches(db, map(int, numbers))
    for number, other in readable.items():
        channels = scores(query, other)
        score = score_of(channels)
        if score > 0:
            found.append((number, score, channels))
    return sorted(found, key=lambda row: (*_order(row[2]), row[0])), refused


def _of_models(db: sqlite3.Connection, numbers: Ints) -> int:
    """How many models have one of these sketches; what was read again has another one."""
    if not numbers.size:
        return 0
    rows = db.execute("SELECT sketch FROM models WHERE sketch IS NOT NULL")
    return int(np.isin([row["sketch"] for row in rows], numbers).sum())


def _order(channels: Mapping[Channel, float]) -> tuple[float, ...]:
    """By which the nearest comes first: by its best channel, at a tie by the next ones.

    A channel that one of the two lacks counts as one at its limit, and what rounding makes of the
    same value is a tie.
    """
    shares = [score_of({name: channels[name]}) if name in channels else 0.0 for name in LIMITS]
    return tuple(sorted(-round(share, 4) for share in shares))


def _candidates(
    db: sqlite3.Connection, near: Sequence[tuple[int, float, Mapping[Channel, float]]]
) -> list[_Candidate]:
    found = []
    for number, score, channels in near:
        rows = db.execute(
            'SELECT id, name, store, path, opens, state, "commit", signature FROM models '
            "WHERE sketch = ? ORDER BY opens IS NULL, state = 'vanished', name, place",
            (number,),
        ).fetchall()
        if rows:
            found.append(_Candidate(score, channels, [_model(db, row) for row in rows]))
    return found


def _refused(db: sqlite3.Connection, refused: Mapping[int, str]) -> list[Skipped]:
    """The models whose sketches could not be used, and why."""
    found = []
    for number, why in refused.items():
        rows = db.execute("SELECT name FROM models WHERE sketch = ? ORDER BY name", (number,))
        found += [Skipped(what=f"the catalogued {row['name']}", reason=why) for row in rows]
    return found


def _model(db: sqlite3.Connection, row: sqlite3.Row) -> _Model:
    files = db.execute(
        "SELECT name, role, bytes, changed FROM files WHERE model = ?", (row["id"],)
    ).fetchall()
    weights = [(f["name"], f["changed"]) for f in files if f["role"] in ("weights", "adapter")]
    return _Model(row, sum(file["bytes"] for file in files), weights)


def _that_stands(candidate: _Candidate, options: FindOptions) -> _Candidate:
    """With a model first that is still what was catalogued, where one of its models is."""
    models, problem = candidate.models, None
    for at, one in enumerate(models):
        why = one.problem(options)
        if why is None:
            return replace(candidate, models=[one, *models[:at], *models[at + 1 :]])
        problem = problem or why
    return replace(candidate, problem=problem)


def _compared(
    model: str,
    checkpoint: Checkpoint,
    candidates: Sequence[_Candidate],
    options: FindOptions,
    progress: Progress | None,
) -> dict[int, PairRecord | str]:
    """What `ckpt compare` says of the model and each candidate, or why it says nothing."""
    found: dict[int, PairRecord | str] = {}
    jobs: dict[tuple[str, ...], tuple[int, _Model | None]] = {}
    waiting = []
    own = sum(info.nbytes for info in checkpoint.store.tensors.values())
    lacks = lacks_config(checkpoint.source.base or checkpoint.source.path)
    share = options.memory // options.workers
    for i, candidate in enumerate(candidates):
        first, problem = candidate.models[0], candidate.problem
        if problem is None:
            place: str = json.loads(first.row["opens"])
        elif first.row["signature"] is not None:
            place = str(database.array_path(options.catalog, first.row["signature"]))
        else:
            found[i] = problem
            continue
        words = compare_arguments(
            (model, place),
            options.level,
            share,
            offline=options.offline,
            # Else it is of no model that is compared, which `ckpt compare` refuses.
            config=options.config if lacks else None,
            base=options.base,
        )
        job = Job(
            first.row["name"],
            words,
            share,
            reserved=share + own + first.nbytes,
            seconds=options.seconds,
        )
        jobs[job.key] = i, first if problem is None else None
        waiting.append(job)
    with running(progress, "comparisons", len(waiting)) as step:
        for job in run_jobs(waiting, at_once=options.workers, memory=options.memory):
            i, of_weights = jobs[job.key]
            # It may have changed while others were compared.
            problem = None if of_weights is None else of_weights.problem(options)
            found[i] = problem or compared(job)
            step(job.model)
    return found


def _match(candidate: _Candidate, compared: PairRecord | str | None, of_sketch: bool) -> FindMatch:
    first, *others = (model.row for model in candidate.models)
    pair = compared if isinstance(compared, PairRecord) else None
    if pair is not None:
        evidence = pair.reasons[0] if pair.reasons else f"verdict {pair.verdict}"
    else:
        why = "a sketch cannot be compared" if of_sketch else str(compared)
        evidence = f"{_nearness(candidate.channels)}; not compared: {why}"
    return FindMatch(
        name=first["name"],
        source=first["store"],
        path=first["path"],
        commit=first["commit"],
        score=candidate.score,
        channels=Channels(**{name: candidate.channels.get(name) for name in LIMITS}),
        verdict=None if pair is None else pair.verdict,
        relation=None if pair is None else pair.relation,
        evidence=evidence,
        same=tuple(row["name"] for row in others),
    )


def _rank(match: FindMatch) -> int:
    """Relatives first, the closest verdict before others; the nearest stay before others."""
    return RELATIVES.index(match.verdict) if match.verdict in RELATIVES else len(RELATIVES)


def _nearness(channels: Mapping[Channel, float]) -> str:
    name = max(channels, key=lambda name: channels[name] / LIMITS[name])
    return f"{name} are alike to {channels[name]:.2f}, and strangers' to less than {LIMITS[name]}"


def _answer(
    matches: Sequence[FindMatch], candidates: int, searched: int, query: Sketch
) -> tuple[Literal["found", "none", "inconclusive"], list[str]]:
    """What all comparisons together say, and why it is no more than that."""
    if any(match.verdict in RELATIVES for match in matches):
        return "found", []
    reasons = [
        f"{match.name}: {match.evidence}" for match in matches if match.verdict != "independent"
    ]
    if candidates > len(matches):
        reasons.append(f"{candidates - len(matches)} more candidates were not compared: raise -k")
    if not searched:
        reasons.append("the catalog has no sketches: 'ckpt catalog add' makes them")
    if query.tokens and "strings" not in query.tokens:
        reasons.append("tokens are known by their ids only, and can be renumbered")
    if "heads" not in query.spectra:
        reasons.append("heads were not looked at, and embeddings can be replaced")
    elif "attention" not in query.spectra:
        reasons.append(
            "attention was looked at in single heads only, which can be split while tokens are "
            "renumbered and renamed"
        )
    if not query.tokens:
        reasons.append("no embeddings were looked at, and heads can be trained away")
    return ("inconclusive" if reasons else "none"), reasons
