"""Where results, progress and hints go: the options of every command."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptforensics.cli.options import Decorator, as_object
from ckptforensics.errors import CkptError, OutputError, UsageError
from ckptforensics.render import FORMATS, formats_of

if TYPE_CHECKING:
    from ckptforensics.checkpoint import Checkpoint
    from ckptforensics.progress import Progress
    from ckptforensics.results import Document, ModelRecord

# As many findings of damage may have a harmless reason, such as a pruned layer.
_FEW_DAMAGES = 3


@dataclass(frozen=True)
class OutputOptions:
    """How a result is shown and kept: --format, -o, -q, -v and --no-progress."""

    form: str
    quiet: bool
    verbose: bool
    no_progress: bool
    output: Path | None = None

    def progress(self, *checkpoints: Checkpoint) -> Progress:
        """A progress bar on stderr, lines where stderr is not a terminal, or nothing.

        What is transferred of checkpoints on the Hub is shown too, while it is.
        """
        from ckptforensics.cli.progress import Bar, Lines, ShownProgress
        from ckptforensics.progress import Silent
        from ckptforensics.sources import RemoteFiles

        if self.quiet or self.no_progress:
            return Silent()
        shown: ShownProgress = Bar() if sys.stderr.isatty() else Lines()
        for checkpoint in checkpoints:
            if isinstance(checkpoint.source.remote, RemoteFiles):
                checkpoint.source.remote.listener = lambda moved: shown.transferred(moved.fetched)
        return shown

    def emit(self, document: Document) -> None:
        """Print the document to stdout."""
        from ckptforensics.render import render

        width, color = screen()
        text = render(document, self.form, verbose=self.verbose, width=width, color=color)
        try:
            click.echo(text, nl=False)
        except BrokenPipeError:
            raise
        except OSError as problem:
            raise OutputError(f"cannot write to stdout: {problem.strerror}") from None

    def save(self, document: Document) -> None:
        """Write the document to the file of -o, if there is one, in the form of its extension.

        That is JSON, or another form in which a document of its kind is shown.
        """
        from ckptforensics.render import render
        from ckptforensics.results import save_document, write_bytes_atomically

        if self.output is None:
            return
        form = self.output.suffix.removeprefix(".")
        if form in ("", "json"):
            save_document(document, self.output)
            self.tell_saved()
            return
        text = render(document, form, verbose=True)
        write_bytes_atomically(self.output, text.encode())
        self.hint(f"saved to {self.output} as {form}")

    def tell_saved(self) -> None:
        """Say where the result is kept."""
        self.hint(f"saved to {self.output}; 'ckpt show {self.output}' renders it again")

    def finish(self, checkpoint: Checkpoint, document: Document, strict: bool) -> None:
        """Print the document, say what was transferred, and fail if --strict finds a gap.

        Raises
        ------
        CkptError
            with `strict`, if the document has a skipped row, or more than a few findings of damage.
        """
        from ckptforensics.sources import RemoteFiles

        self.emit(document)
        remote = checkpoint.source.remote
        if isinstance(remote, RemoteFiles):
            moved = remote.transfer
            self.hint(f"transferred {moved.fetched:,} of {moved.total:,} bytes")
        if strict:
            require_whole(document)

    def check_plot(self, path: Path | None) -> None:
        """Refuse a file that could not be drawn to, before anything is computed."""
        from ckptforensics.render import check_plot_path

        if path is not None:
            check_plot_path(path)

    def plot(self, document: Document, path: Path | None) -> None:
        """Draw the document to the file of --plot, if there is one."""
        from ckptforensics.render import plot_document

        if path is not None:
            plot_document(document, path)
            self.hint(f"drawn to {path}")

    def hint(self, text: str) -> None:
        """Tell the user something that is not a result."""
        if not self.quiet:
            click.echo(text, err=True)


def require_whole(document: Document) -> None:
    """CkptError if the document has a skipped row, or its model looks damaged."""
    require_sound(getattr(document, "model", None))
    skipped = getattr(document, "skipped", ())
    if skipped:
        rest = "" if len(skipped) == 1 else f" (and {len(skipped) - 1} more)"
        raise CkptError(f"--strict: {skipped[0].what} skipped: {skipped[0].reason}{rest}")


def require_sound(model: ModelRecord | None) -> None:
    """CkptError if the model looks damaged: by more than a few findings, or beyond doubt.

    That is by a number that is not finite, or where no layer adds anything.
    """
    if model is None:
        return
    damage = [one for one in model.damage if one.level == "finding"]
    bad = next((one for one in damage if one.what == "not-finite"), None)
    idle = sum(one.what == "identity" for one in damage)
    if bad is not None:
        problem = f"numbers in {bad.tensor} are NaN or infinite"
    elif idle and idle == model.num_layers:
        problem = "no layer adds anything: output and down are zero in all of them"
    elif len(damage) > _FEW_DAMAGES:
        problem = f"{len(damage)} findings of damage, the first in {damage[0].tensor}"
    else:
        return
    raise CkptError(
        f"--strict: {problem}",
        path=Path(model.path),
        hint="fetch the files again and compare their SHA-256, or leave --strict out",
    )


def screen() -> tuple[int | None, bool]:
    """Columns of the reader's screen, None if nothing says them, and whether it shows colours."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    # COLUMNS is what a user says of a pipe, too.
    width = shutil.get_terminal_size().columns if terminal or _columns_said() else None
    return width, terminal and not os.environ.get("NO_COLOR")


def _columns_said() -> bool:
    """Whether COLUMNS gives a width."""
    said = os.environ.get("COLUMNS", "")
    return said.isdecimal() and int(said) > 0


def output_options(
    save_help: str | None, *, own_check: bool = False, kind: str = "signature"
) -> Decorator[Any]:
    """Add --format, -o (unless `save_help` is None), -q, -v and --no-progress.

    With `own_check` the command itself looks at the path of -o, which may be a folder; --format
    offers those of a `kind` of document, of any kind for "".
    """
    options = [
        click.option(
            "--format",
            "form",
            type=click.Choice(formats_of(kind) if kind else FORMATS),
            default="table",
            show_default=True,
            help="How the result is printed.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="No progress and no hints."),
        click.option("-v", "--verbose", is_flag=True, help="Every row of every table."),
        click.option("--no-progress", is_flag=True, help="No progress on stderr."),
    ]
    if save_help is not None:
        save = click.option(
            "-o",
            "--output",
            type=click.Path(dir_okay=own_check, path_type=Path),
            callback=None if own_check else partial(_document_file, kind),
            help=save_help,
        )
        options.insert(1, save)
    return as_object(OutputOptions, "out", *options)


def _document_file(
    kind: str, context: click.Context, parameter: click.Parameter, value: Path | None
) -> Path | None:
    """A file must hold what its name says."""
    forms = [form for form in formats_of(kind) if form != "table"]
    arrays = {"norms": (".npz",), "empirical": (".safetensors",)}.get(kind, ())
    known = ("", *(f".{form}" for form in forms), *arrays)
    if value is not None and value.suffix not in known:
        raise UsageError(
            f"this result is saved as {', '.join(known[1:])}", path=value, hint="change -o"
        )
    return value
