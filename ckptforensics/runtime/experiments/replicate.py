"""Published figures of a model beside what is measured on the model at hand, and its pictures."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import CkptError, NothingAnalysable, UsageError
from ckptforensics.findings import find_layers
from ckptforensics.findings.model import model_record, opened
from ckptforensics.forward import vocabulary_size
from ckptforensics.progress import Progress
from ckptforensics.results import Empirical, LayersDocument, Skipped
from ckptforensics.results.quantization import RowName
from ckptforensics.results.replication import ReplicatedFigure, ReplicationDocument
from ckptforensics.runtime.experiments.ablate import ablate
from ckptforensics.runtime.experiments.empirical import empirical
from ckptforensics.runtime.experiments.paths import paths
from ckptforensics.runtime.experiments.quantize import evaluate_quantization
from ckptforensics.runtime.experiments.sinks import WINDOW, sinks
from ckptforensics.runtime.experiments.trace import trace
from ckptforensics.runtime.model import Runtime, start
from ckptforensics.runtime.texts import Text
from ckptforensics.runtime.weights import Placement
from ckptforensics.version import __version__

# Tokens whose paths are drawn: all of a large vocabulary would take hours.
_PATHS = 2000
# Degrees, for angles on another text than the published one; and for a share of heads.
_DEGREES, _SHARE = 2.0, 0.05
# Rows of Table 1, and the share by which perplexity may differ: as it is, and rounded.
_TABLE: tuple[RowName, ...] = ("none", "rtn", "rtn+planned", "smoothquant", "smoothquant+planned")
_EXACT, _ROUNDED = 0.02, 0.1
# Of the published rows: tokens of a window over the whole text, and the alpha of smoothquant's
# README; it calibrates on another text. Of recorded ones: what a test can afford.
_PUBLISHED, _ALPHA = Text(dataset="wikitext", window=2048, limit=None), 0.85
_CALIBRATION = Text(window=512, limit=16_384)
_OWN, _OWN_ALPHA = Text(window=256, limit=1024), 0.5

_Result = TypeVar("_Result")


def published() -> Mapping[str, Mapping[str, Any]]:
    """Name of a model to its published figures, as runtime/published.toml explains them."""
    return _published()


def replicate(
    model: Checkpoint | str | Path,
    *,
    name: str | None = None,
    text: Text | None = None,
    pictures: bool = True,
    quantized: bool = False,
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> ReplicationDocument:
    """Measure on a model what is published of it.

    Parameters
    ----------
    model : an opened checkpoint or what `open_checkpoint` takes
    name : whose figures, of `published()`; by default told from the model's name and shape
    text : by default Python's help topics; the published figures are of WikiText-2
    pictures : also what the paper's pictures show and no number says: trace, paths, ablations
    quantized : Table 1 as well, perplexity with rounded modules, where it is known of the model; it
        is of all of WikiText-2's test split, or of the whole of a text that is named
    placement : device and element type
    progress : told of each step

    Raises
    ------
    UsageError
        if there are no figures of that name, or none can be told to be this model's.
    CkptError
        as `open_checkpoint`.
    """
    checkpoint = opened(model)
    chosen = name or _told(checkpoint)
    figures = published().get(chosen)
    if figures is None:
        raise UsageError(f"nothing is published of '{chosen}'", hint=f"there is: {_names()}")
    skipped: list[Skipped] = []

    def tried(what: str, work: Callable[[Runtime], _Result]) -> _Result | None:
        return None if running is None else _tried(what, skipped, partial(work, running))

    running = _tried("running model", skipped, lambda: start(checkpoint, placement))
    seen = tried("empirical", lambda r: empirical(r, text=text, progress=progress))
    table: tuple[ReplicatedFigure, ...] | None = None
    if quantized:
        table = _tried(
            "Table 1",
            skipped,
            lambda: tuple(_table(checkpoint, figures, text, placement, progress)),
        )
    layers = find_layers(checkpoint, empirical=seen, progress=progress)
    traced, walked, ablated, sunk = None, None, None, None
    if pictures:
        traced = tried("trace", lambda r: trace(r, text=text, progress=progress))
        ablated = tried("ablation", lambda r: ablate(r, text=text, progress=progress))
        which = running or checkpoint
        walked = _tried(
            "paths", skipped, lambda: paths(which, vocabulary=_PATHS, progress=progress)
        )
    if pictures or "sinks" in figures:
        words = text or Text(window=WINDOW)
        sunk = tried("sinks", lambda r: sinks(r, text=words, progress=progress))
    return ReplicationDocument(
        tool_version=__version__,
        model=model_record(checkpoint),
        name=chosen,
        own=bool(figures.get("own", False)),
        running=None if seen is None else seen.document.running,
        text=None if seen is None else seen.document.text,
        figures=(
            *_figures(figures, layers, seen, None if sunk is None else sunk.share),
            *(table or ()),
        ),
        trace=traced,
        layers=layers,
        empirical=None if seen is None else seen.document,
        paths=walked,
        ablation=ablated,
        sinks=sunk,
        skipped=tuple(skipped),
    )


def _tried(what: str, skipped: list[Skipped], work: Callable[[], _Result]) -> _Result | None:
    """What the work returns, or None where it cannot be done, which is noted."""
    try:
        return work()
    except CkptError as problem:
        skipped.append(Skipped(what=what, reason=problem.message))
        return None


def _figures(
    wanted: Mapping[str, Any], layers: LayersDocument, seen: Empirical | None, share: float | None
) -> Iterator[ReplicatedFigure]:
    for label in ("explosion", "decay"):
        if label in wanted:
            yield _same(f"{label} layers", wanted[label], getattr(layers, label))
    if "labelled" in wanted:
        found = tuple(sorted({*layers.explosion, *layers.decay}))
        yield _same("explosion and decay layers", wanted["labelled"], found)
    if "super_weights" in wanted:
        measured: list[tuple[int, ...]] = [(w.layer, w.row, w.column) for w in layers.super_weights]
        yield _among("super weights", [tuple(w) for w in wanted["super_weights"]], measured)
    if seen is not None and seen.document.plateaus:
        plateaus = seen.document.plateaus
        highest = max(range(len(plateaus)), key=lambda i: plateaus[i].median_norm)
        plateau = plateaus[highest]
        if "pairwise" in wanted and plateau.pairwise_angle_deg is not None:
            angle = plateau.pairwise_angle_deg
            yield _near("pairwise angle", [wanted["pairwise"]], [angle], _DEGREES)
        if "angle" in wanted:
            rows = {row.layer: i for i, row in enumerate(layers.layers)}
            places = [rows.get(n) for n in (wanted["explosion"][0], wanted["decay"][-1])]
            every = layers.empirical[highest].angles_deg
            angles = [90.0 if i is None else every[i] for i in places]  # of a layer there is not
            yield _near("angle of u1 to the direction", wanted["angle"], angles, _DEGREES)
        if "massive" in wanted:
            massive: list[tuple[int, ...]] = [(m.coordinate,) for m in plateau.massive]
            yield _among("massive coordinates", [(c,) for c in wanted["massive"]], massive)
    if share is not None and "sinks" in wanted:
        yield _near("share of heads with a sink", [wanted["sinks"]], [share], _SHARE)


def _table(
    checkpoint: Checkpoint,
    figures: Mapping[str, Any],
    text: Text | None,
    placement: Placement | None,
    progress: Progress | None,
) -> Iterator[ReplicatedFigure]:
    """Perplexity of each row of Table 1; kept are `down_proj` of explosion and decay layers."""
    if "quantization" not in figures:
        raise NothingAnalysable("nothing is published of it")
    own = bool(figures.get("own", False))
    usual = _OWN if own else _PUBLISHED
    named = text if text is not None and text.given else usual
    document = evaluate_quantization(
        checkpoint,
        rows=_TABLE,
        alphas=(_OWN_ALPHA if own else _ALPHA,),
        layers=sorted({*figures["explosion"], *figures["decay"]}),
        text=replace(named, window=usual.window, limit=usual.limit, seed=None),
        calibration=None if own else _CALIBRATION,
        placement=placement,
        progress=progress,
    )
    found = {row.row: row.perplexity for row in document.rows}
    for name, wanted in zip(_TABLE, figures["quantization"], strict=True):
        if name in found:
            by = wanted * (_EXACT if name == "none" else _ROUNDED)
            yield _near(f"perplexity, {name}", [wanted], [found[name]], by)


def _same(what: str, wanted: list[int], found: tuple[int, ...]) -> ReplicatedFigure:
    return ReplicatedFigure(
        what=what,
        published=tuple(wanted),
        measured=found,
        tolerance=None,
        passed=sorted(wanted) == sorted(found),
    )


def _near(what: str, wanted: list[float], found: list[float], by: float) -> ReplicatedFigure:
    return ReplicatedFigure(
        what=what,
        published=tuple(wanted),
        measured=tuple(found),
        tolerance=by,
        passed=all(abs(a - b) <= by for a, b in zip(wanted, found, strict=True)),
    )


def _among(
    what: str, wanted: list[tuple[int, ...]], found: list[tuple[int, ...]]
) -> ReplicatedFigure:
    """The published ones, and which of the measured are they; where there are none, no other."""
    return ReplicatedFigure(
        what=what,
        published=tuple(number for one in wanted for number in one),
        measured=tuple(number for one in found if one in wanted or not wanted for number in one),
        tolerance=None,
        passed=set(wanted) <= set(found) if wanted else not found,
    )


def _told(checkpoint: Checkpoint) -> str:
    """The model whose shape this one has, and whose name the path holds where several have it."""
    sizes = checkpoint.architecture.sizes
    shape = [sizes.hidden_size, sizes.num_layers]
    fitting = [
        name
        for name, figures in published().items()
        if figures["shape"] == shape
        and figures.get("vocabulary", vocabulary_size(checkpoint)) == vocabulary_size(checkpoint)
    ]
    path = _plain(str(checkpoint.source.path))
    named = [name for name in fitting if _plain(name) in path]
    if len(named) == 1:
        return named[0]
    which = f"of this shape: {', '.join(fitting)}" if fitting else f"there is: {_names()}"
    raise UsageError(
        "whose published figures these are cannot be told from the name",
        path=checkpoint.source.path,
        hint=f"name one with --as ({which})",
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _names() -> str:
    return ", ".join(published())


@cache
def _published() -> Mapping[str, Mapping[str, Any]]:
    file = resources.files("ckptforensics.runtime") / "published.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))
