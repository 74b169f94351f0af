"""Drawings of a comparison as SVG to stand inside a page, in the page's own colours.

Elements are made by `Markup.format`, which escapes what is put in.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from markupsafe import Markup

from ckptforensics.errors import one_line
from ckptforensics.quantities import angle
from ckptforensics.render.dendrogram import Dendrogram

_RIGHT_ANGLE = 90.0
_TICKS_DEG = (0, 30, 60, 90)
_MOST_LAYER_TICKS = 12
# Where the page's style is not applied.
_STROKES = MappingProxyType({"grid": "#ccc", "curve": "#06c", "after": "#c2410c"})
_BAND = Markup('<rect class="band" fill="#ddd" x="{}" y="{}" width="{}" height="{:.2f}"/>')
_DOT = Markup(
    '<circle class="dot" cx="{:.2f}" cy="{:.2f}" r="3"><title>layer {}: {} degrees</title></circle>'
)
_SQUARE = Markup(
    '<rect class="square" fill="#c2410c" x="{:.2f}" y="{:.2f}" width="6" height="6" '
    'transform="translate(-3 -3)"><title>layer {}, after the map: {} degrees</title></rect>'
)
_LINE = Markup('<line class="{}" stroke="{}" x1="{:.2f}" y1="{:.2f}" x2="{:.2f}" y2="{:.2f}"/>')
_WORDS = Markup('<text x="{:.2f}" y="{:.2f}" text-anchor="{}">{}</text>')
_DRAWING = Markup(
    '<svg role="img" aria-label="{}" viewBox="0 0 {:.0f} {:.0f}" width="{:.0f}" height="{:.0f}">'
    "{}</svg>"
)


def angle_profile(
    layers: Sequence[int],
    angles: Sequence[float | None],
    random_from: float | None,
    aligned: Sequence[float | None] = (),
) -> Markup:
    """Angles between u1 of corresponding layers over the layers of A, gaps where there is none.

    Parameters
    ----------
    layers : numbers of A's layers, ascending
    angles : in degrees, one a layer
    random_from : from here to 90 degrees random directions would lie; None if that is not known
    aligned : the angles after the map, as many; empty where they are not known
    """
    left, top, width, height = 46.0, 10.0, 580.0, 180.0

    def x(i: int) -> float:
        return left + width * (i + 0.5) / max(1, len(layers))

    def y(degrees: float) -> float:
        return top + height * (1 - degrees / _RIGHT_ANGLE)

    parts = []
    if random_from is not None:
        band = y(random_from) - y(_RIGHT_ANGLE)
        parts.append(_BAND.format(left, top, width, band))
    for tick in _TICKS_DEG:
        parts.append(_line(left, y(tick), left + width, y(tick), "grid"))
        parts.append(_words(left - 6, y(tick) + 4, str(tick), "end"))
    step = max(1, -(-len(layers) // _MOST_LAYER_TICKS))
    parts.extend(
        _words(x(i), top + height + 16, str(layers[i]), "middle")
        for i in range(0, len(layers), step)
    )
    parts.append(_words(left + width / 2, top + height + 32, "layer of A", "middle"))
    curves = [(angles, "curve", _DOT)]
    if len(aligned) == len(layers):
        curves.append((aligned, "after", _SQUARE))
    for values, kind, mark in curves:
        for i, value in enumerate(values):
            if value is None:
                continue
            following = values[i + 1] if i + 1 < len(values) else None
            if following is not None:
                parts.append(_line(x(i), y(value), x(i + 1), y(following), kind))
            parts.append(mark.format(x(i), y(value), layers[i], angle(value)))
    name = "angle between u1 of corresponding layers, in degrees"
    return _drawing(left + width + 10, top + height + 40, name, parts)


def dendrogram_drawing(tree: Dendrogram, names: Sequence[str]) -> Markup:
    """A dendrogram lying on its side, its leaves' names at the right.

    Parameters
    ----------
    names : of all models, in the order that the dendrogram's leaves are numbered in
    """
    left, top, width, row = 20.0, 10.0, 300.0, 24.0
    highest = tree.height or 1.0
    bottom = top + row * len(tree.order)

    def x(height: float) -> float:
        return left + width * (1 - height / highest)

    def y(place: float) -> float:
        return top + row * (place + 0.5)

    parts = []
    for bracket in tree.brackets:
        (one, one_height), (other, other_height) = bracket.left, bracket.right
        parts.append(_line(x(bracket.height), y(one), x(one_height), y(one), "curve"))
        parts.append(_line(x(bracket.height), y(other), x(other_height), y(other), "curve"))
        parts.append(_line(x(bracket.height), y(one), x(bracket.height), y(other), "curve"))
    for place, leaf in enumerate(tree.order):
        parts.append(_words(left + width + 8, y(place) + 4, names[leaf], "start"))
    parts.append(_line(left, bottom + 6, left + width, bottom + 6, "grid"))
    for share in (0.0, 0.5, 1.0):
        at = share * highest
        parts.append(_words(x(at), bottom + 20, angle(at), "middle"))
    parts.append(_words(left + width / 2, bottom + 36, "average distance, degrees", "middle"))
    return _drawing(left + width + 320, bottom + 44, "dendrogram of the distances", parts)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return _LINE.format(kind, _STROKES[kind], x1, y1, x2, y2)


def _words(x: float, y: float, text: str, anchor: str) -> Markup:
    return _WORDS.format(x, y, anchor, one_line(text))


def _drawing(width: float, height: float, name: str, parts: Sequence[Markup]) -> Markup:
    return _DRAWING.format(name, width, height, width, height, Markup().join(parts))
