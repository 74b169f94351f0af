"""What the tables of several kinds say alike: the model, the direction, what was skipped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console

from ckptforensics.quantities import counted
from ckptforensics.render.damage import damage_lines, examined_line
from ckptforensics.render.tables.console import fact
from ckptforensics.results.records import ModelRecord, Skipped, rollout_incomplete

if TYPE_CHECKING:  # a table needs the class of its own kind
    from ckptforensics.results import LayersDocument, SignatureDocument


def heading(console: Console, model: ModelRecord) -> None:
    """Print what was analysed."""
    source = {"config": "config.json", "gguf": "GGUF metadata", "inferred": "INFERRED from names"}
    fact(console, "model", model.path)
    if model.base is not None:
        fact(console, "base", f"{model.base} (the adapter {model.path} merged onto it)")
    fact(
        console,
        "family",
        f"{model.family} ({source[model.family_source]}), {counted(model.num_layers, 'layer')}, "
        f"width {model.hidden_size:,}",
    )
    for note in model.notes:
        fact(console, "assumed", note, "yellow")
    for line in damage_lines(model):
        fact(console, "damage", line, "red")
    examined = examined_line(model)
    if examined is not None:
        fact(console, "examined", examined)


def layer_facts(console: Console, document: SignatureDocument | LayersDocument) -> None:
    """Print explosion and decay layers and the shared direction."""
    direction = document.direction
    none = "none found"
    if rollout_incomplete(document.skipped):
        none += " (rollout skipped or incomplete)"
    for name, layers, style in (
        ("explosion", document.explosion, "red"),
        ("decay", document.decay, "cyan"),
    ):
        fact(console, name, ", ".join(map(str, layers)) or none, style if layers else "")
    if direction.source == "none":
        fact(console, "direction", "none: no layer adds anything", "yellow")
        return
    where = (
        f"tokens after layer {direction.layer}"
        if direction.source == "rollout"
        else "most common u1; no token was seen to follow it"
    )
    fact(console, "direction", f"{coordinates(direction.top)} ({where})")


def skipped(console: Console, rows: Iterable[Skipped]) -> None:
    """Print what was not analysed."""
    for row in rows:
        fact(console, "skipped", f"{row.what}: {row.reason}", "yellow")


def layer_styles(document: SignatureDocument | LayersDocument) -> dict[int, str]:
    """The style of each layer that has a label."""
    return {**dict.fromkeys(document.explosion, "red"), **dict.fromkeys(document.decay, "cyan")}


def coordinates(top: tuple[tuple[int, float], ...]) -> str:
    """The largest components of a vector, in one line."""
    return "  ".join(f"{index}: {value:+.3f}" for index, value in top)
