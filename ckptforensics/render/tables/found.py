"""Sketches, and whose copy a model is, for people."""

from __future__ import annotations

from ckptforensics.errors import one_line
from ckptforensics.quantities import counted, duration, size
from ckptforensics.render.tables.console import (
    fact,
    make_console,
    make_table,
    print_table,
    say,
    text_of,
)
from ckptforensics.render.view import View
from ckptforensics.results.find import FindDocument, FindMatch
from ckptforensics.results.sketch import SketchDocument

# How a channel is named to people.
_CHANNELS = {
    "strings": "tokens",
    "ids": "tokens by id",
    "heads": "heads",
    "attention": "attention",
}


def sketch_table(document: SketchDocument, view: View) -> str:
    """What the sketch holds, and what it cost."""
    console = make_console(view)
    fact(console, "model", document.model.path)
    for tokens in document.found.tokens:
        fact(console, _CHANNELS[tokens.by], f"{tokens.count}, in no basis")
    heads = document.found.heads
    if heads is not None:
        fact(console, "heads", f"{heads.count:,} of {heads.total:,}, by their singular values")
    if (layers := document.found.attention) is not None:
        said = f"{layers.count:,} of {layers.total:,} layers, by what they do to single tokens"
        fact(console, "attention", said)
    for row in document.skipped:
        say(console, f"not looked at: {row.what} ({row.reason})")
    asked = "" if document.requests is None else f" in {counted(document.requests, 'request')}"
    fact(console, "read", f"{size(document.bytes_read)}{asked}, {duration(document.seconds)}")
    return text_of(console)


def find_table(document: FindDocument, view: View) -> str:
    """The answer, what it rests on, and a row a candidate."""
    console = make_console(view)
    fact(console, "model", document.model.path)
    fact(console, "catalog", f"{document.catalog}, {document.searched:,} sketches")
    fact(console, "answer", _ANSWERS[document.answer])
    if document.matches:
        table = make_table("model", "score", "verdict", "by")
        for match in document.matches:
            verdict: str = match.verdict or "not compared"
            if match.relation is not None:
                verdict += f", {match.relation}"
            table.add_row(one_line(match.name), f"{match.score:.2f}", verdict, _strongest(match))
        print_table(console, table)
    for match in document.matches:
        say(console, f"{match.name}: {match.evidence}")
        if match.same:
            say(console, f"the same sketch: {', '.join(match.same)}")
    for reason in document.reasons:
        say(console, f"why inconclusive: {reason}")
    for row in document.skipped:
        say(console, f"not looked at: {row.what} ({row.reason})")
    if document.without:
        say(console, f"not searched: {counted(document.without, 'model')} without a sketch")
    spent = f"search {document.search_seconds:.3f} s, all {duration(document.seconds)}"
    fact(console, "took", spent)
    return text_of(console)


_ANSWERS = {
    "found": "it is a relative of what is marked so below",
    "none": "no relative among the models that were searched",
    "inconclusive": "it cannot be told",
}


def _strongest(match: FindMatch) -> str:
    known = match.channels.model_dump(exclude_none=True)
    return ", ".join(f"{_CHANNELS[name]} {value:.2f}" for name, value in known.items())
