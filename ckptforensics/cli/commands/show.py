"""`ckpt show`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ckptforensics.cli.output import OutputOptions, output_options


@click.command("show")
@click.argument("result", type=click.Path(path_type=Path))
@output_options(None, kind="")
def command(result: Path, out: OutputOptions) -> None:
    """Render a saved result again, without computing anything.

    RESULT is a file written with -o: a signature (.safetensors) or a document (.json), or - for
    either on stdin. Its formats are those of its command: table and json, of all but signature,
    inspect, families and cache also html, and but for a report csv.
    """
    from ckptforensics.results import load_document, parse_document

    if str(result) == "-":
        out.emit(parse_document(sys.stdin.buffer.read()))
    else:
        out.emit(load_document(result))
