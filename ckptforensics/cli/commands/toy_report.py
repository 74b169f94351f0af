"""`ckpt toy report`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.output import OutputOptions, output_options, require_whole


@click.command("report")
@click.argument(
    "folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--text-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text of the runs that were trained on one.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it: FILE.png, .svg or .pdf.")
@click.option("--strict", is_flag=True, help="Fail if something is skipped.")
@output_options("Save the result as JSON, or as CSV by the name's ending.", kind="toy")
def command(
    folders: tuple[Path, ...],
    text_file: Path | None,
    plot: Path | None,
    strict: bool,
    out: OutputOptions,
) -> None:
    """Show what runs of `ckpt toy train` show, beside what is published.

    DIR is the folder of a run, finished or not. Attention to the first token, drained values,
    logits and residual peaks along training; what the last checkpoint does without attention, FFN
    or a layer; and which heads are active on which tokens.
    """
    from ckptforensics.runtime.toy.report import report

    out.check_plot(plot)
    document = report(folders, out.progress(), text=text_file)
    out.save(document)
    out.plot(document, plot)
    out.emit(document)
    if strict:
        require_whole(document)
