"""Which audited models hang together, and where each stands in a drawing of its family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ckptforensics.results.audit import AuditDocument
from ckptforensics.results.comparison import RELATIVES


class Edge(NamedTuple):
    """Two members by their places in the family; `directed` from `older` to `younger`.

    `verdict` and `relation` are those of the document.
    """

    older: int
    younger: int
    directed: bool
    verdict: str
    relation: str | None


class Family(NamedTuple):
    """Models that are relatives of one another, directly or over others.

    Attributes
    ----------
    names : the members, a line each: those behind a member were made from it, or from one of it
    columns : how far each is from a root, in steps
    parents : the member that each is drawn below, None for a root
    edges : all relations, each pair once
    """

    names: tuple[str, ...]
    columns: tuple[int, ...]
    parents: tuple[int | None, ...]
    edges: tuple[Edge, ...]


class _Link(NamedTuple):
    """A pair of the document: the older one first where `directed`."""

    older: str
    younger: str
    directed: bool
    verdict: str
    relation: str | None


def families(document: AuditDocument) -> list[Family]:
    """The families with two members or more, the largest first.

    A relative that is no model of the document, such as an imported root, is a member too.
    """
    links = _links(document)
    around: dict[str, list[_Link]] = {}
    for link in links:
        around.setdefault(link.older, []).append(link)
        around.setdefault(link.younger, []).append(link)
    order = [model.name for model in document.models if model.name in around]
    seen: set[str] = set()
    found = []
    for name in (*order, *around):
        if name not in seen:
            members = _reached(name, around)
            seen.update(members)
            found.append(_laid_out(members, around))
    return sorted(found, key=lambda family: -len(family.names))


def _links(document: AuditDocument) -> list[_Link]:
    """Relations of relatives, once a pair: with its direction where one of the two has it."""
    links: dict[frozenset[str], _Link] = {}
    for model in document.models:
        for row in model.relatives:
            if row.verdict not in (*RELATIVES, "same weights") or row.name == model.name:
                continue
            ends = (model.name, row.name) if row.arrow == "b->a" else (row.name, model.name)
            link = _Link(*ends, row.arrow != "unknown", row.verdict, row.relation)
            known = links.get(frozenset(ends))
            if known is None or (link.directed and not known.directed):
                links[frozenset(ends)] = link
    return list(links.values())


def _reached(start: str, around: Mapping[str, Iterable[_Link]]) -> list[str]:
    """All that hang together with `start`, in the order in which they are found."""
    found = {start: None}
    waiting = [start]
    while waiting:
        for link in around[waiting.pop()]:
            for name in (link.older, link.younger):
                if name not in found:
                    found[name] = None
                    waiting.append(name)
    return list(found)


def _laid_out(members: list[str], around: Mapping[str, list[_Link]]) -> Family:
    below, depth = _forest(members, around)
    lines: list[str] = []
    waiting = [name for name in reversed(members) if below[name] is None]
    children: dict[str, list[str]] = {}
    for name in depth:
        above = below[name]
        if above is not None:
            children.setdefault(above, []).append(name)
    while waiting:
        name = waiting.pop()
        lines.append(name)
        waiting.extend(reversed(children.get(name, ())))
    place = {name: line for line, name in enumerate(lines)}
    edges = dict.fromkeys(link for name in lines for link in around[name])
    return Family(
        tuple(lines),
        tuple(depth[name] for name in lines),
        tuple(None if (up := below[name]) is None else place[up] for name in lines),
        tuple(Edge(place[link.older], place[link.younger], *link[2:]) for link in edges),
    )


def _forest(
    members: list[str], around: Mapping[str, list[_Link]]
) -> tuple[dict[str, str | None], dict[str, int]]:
    """What each member is drawn below, and how deep, in order of depth.

    Roots are what others came from and nothing they came from is known; without any, the member
    with the most relatives. From a member the search follows directions first.
    """
    made = {link.younger for name in members for link in around[name] if link.directed}
    roots = [
        name for name in members if name not in made and any(link.directed for link in around[name])
    ]
    if not roots:
        roots = [max(members, key=lambda name: len(around[name]))]
    below: dict[str, str | None] = dict.fromkeys(roots)
    depth = dict.fromkeys(roots, 0)
    for now in _growing(depth):
        ordered = sorted(around[now], key=lambda link: (not link.directed, link.older != now))
        for link in ordered:
            other = link.younger if link.older == now else link.older
            if other not in depth:
                below[other], depth[other] = now, depth[now] + 1
    return below, depth


def _growing(found: Mapping[str, int]) -> Iterable[str]:
    """The keys of a dictionary, also those that are added on the way."""
    done = 0
    while done < len(found):
        batch = list(found)[done:]
        done += len(batch)
        yield from batch
