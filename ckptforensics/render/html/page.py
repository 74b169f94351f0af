"""A comparison as one HTML page that loads nothing and runs nothing.

The pages are the templates beside this file. They see documents and the functions of `wording`, and
whatever they put into a page is one line and escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ckptforensics.errors import one_line
from ckptforensics.render import wording
from ckptforensics.render.damage import damage_lines
from ckptforensics.render.dendrogram import lay_out
from ckptforensics.render.html.svg import angle_profile, dendrogram_drawing
from ckptforensics.render.view import Fact, Part, Sentence, View
from ckptforensics.results import ComparisonDocument, PairRecord
from ckptforensics.results.comparison import RANDOM_SHARE, RELATIVES, random_angle_deg

_LONGEST_NAME = 40


class Figure(NamedTuple):
    """A drawing and the words below it."""

    drawing: Markup
    caption: str


def comparison_html(document: ComparisonDocument, view: View) -> str:
    """All of a comparison as a page in one file: tables, and drawings as inline SVG."""
    pairs = document.pairs_by_place
    heads = wording.short_labels(len(document.models))
    page = environment().get_template("comparison.html")
    return page.render(
        document=document,
        damage=_damage(document, heads),
        models=list(zip(heads, model_lines(document), strict=True)),
        heads=heads,
        called=wording.labels(document),
        pair_at=lambda i, j: None if i == j else pairs.get(frozenset((i, j))),
        dendrogram=_dendrogram(document),
        profile=lambda pair: angle_figure(document, pair),
    )


@cache
def environment() -> Environment:
    """What all pages are made with: whatever is put into one is escaped and on one line."""
    made = Environment(
        loader=PackageLoader("ckptforensics.render.html"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else one_line(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals.update(words=wording, shade=_shade, runs=_runs)
    return made


def _runs(parts: Sequence[Part]) -> list[tuple[str, list[Part]]]:
    """Parts of one kind that stand behind one another, with the name of their kind."""

    def kind(part: Part) -> str:
        if isinstance(part, Sentence):
            return "item" if part.item else "sentence"
        return "fact" if isinstance(part, Fact) else "rows"

    return [(name, list(group)) for name, group in groupby(parts, kind)]


def model_lines(document: ComparisonDocument) -> list[str]:
    """Each model in a line, with what was assumed of it."""
    return [
        "; ".join([wording.model_line(model, name), *(f"assumed: {note}" for note in model.notes)])
        for name, model in zip(document.names, document.models, strict=True)
    ]


def _damage(document: ComparisonDocument, heads: list[str]) -> list[str]:
    return [
        f"{head}: {line}"
        for head, model in zip(heads, document.models, strict=True)
        for line in damage_lines(model, len(model.damage))
    ]


def _shade(pair: PairRecord | None) -> str:
    """The class of what stands for a pair."""
    if pair is None:
        return ""
    if pair.verdict in RELATIVES:
        return "kin"
    if pair.verdict == "not comparable":
        return "apart"
    return "unsure" if pair.verdict in wording.ABSTENTIONS else "plain"


def angle_figure(document: ComparisonDocument, pair: PairRecord) -> Figure | None:
    """The angles between u1 of corresponding layers, drawn; None where there are none."""
    aligned = pair.aligned_deg
    if all(value is None for value in (*pair.angles_deg, *aligned)):
        return None
    width = document.width_of(pair)
    limit = None if width is None else random_angle_deg(width)
    caption = f"{wording.verdict_line(pair)}. Angle between u1 of corresponding layers, in degrees"
    if len(aligned) == len(pair.angle_layers):
        caption += ": dots in the stored basis, squares after the recovered map"
    caption += "."
    if limit is not None:
        caption += (
            f" Shaded: {RANDOM_SHARE:.0%} of random directions in {width:,} dimensions. Those of "
            "real models lie near single coordinates, so a small angle alone decides nothing."
        )
    return Figure(angle_profile(pair.angle_layers, pair.angles_deg, limit, aligned), caption)


def _dendrogram(document: ComparisonDocument) -> Figure | None:
    tree = lay_out(document.linkage, len(document.models))
    if tree is None:
        return None
    return Figure(
        dendrogram_drawing(tree, wording.short_names(document, _LONGEST_NAME)),
        "Dendrogram of the distances (average linkage). It shows angles, "
        "of relatives those after the map where they are smaller, and no verdicts.",
    )
