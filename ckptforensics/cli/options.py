"""Options and output that every command shares."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ckptforensics.errors import CkptError, OutputError, UsageError
from ckptforensics.render import formats_of

if TYPE_CHECKING:
    from ckptforensics.checkpoint import Checkpoint
    from ckptforensics.linear import Fit
    from ckptforensics.progress import Progress
    from ckptforensics.results import Document

Function = TypeVar("Function", bound=Callable[..., Any])

# Of --format where the result may be a comparison.
COMPARISON_FORMS = formats_of("comparison")
# Of every other result.
_FORMS = formats_of("signature")
# Shorter work shows no bar, and a log file gets a line no more often than this.
_BAR_AFTER_SECONDS = 0.7
_LINE_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Output:
    """Where results and progress go, from the options every command has."""

    form: str
    path: Path | None
    quiet: bool
    verbose: bool
    with_progress: bool

    def progress(self, *checkpoints: Checkpoint) -> Progress:
        """A progress bar on stderr, lines where stderr is not a terminal, or nothing.

        What is transferred of checkpoints on the Hub is shown too, while it is.
        """
        from ckptforensics.progress import Silent
        from ckptforensics.sources import RemoteFiles

        if self.quiet or not self.with_progress:
            return Silent()
        shown = _Bar() if sys.stderr.isatty() else _Lines()
        for checkpoint in checkpoints:
            if isinstance(checkpoint.source.remote, RemoteFiles):
                checkpoint.source.remote.listener = lambda moved: shown.transferred(moved.fetched)
        return shown

    def emit(self, document: Document) -> None:
        """Print the document to stdout."""
        from ckptforensics.render import render

        terminal = sys.stdout is not None and sys.stdout.isatty()
        text = render(
            document,
            self.form,
            verbose=self.verbose,
            width=shutil.get_terminal_size().columns if terminal else None,
            color=terminal and not os.environ.get("NO_COLOR"),
        )
        try:
            click.echo(text, nl=False)
        except BrokenPipeError:
            raise
        except OSError as problem:
            raise OutputError(f"cannot write to stdout: {problem.strerror}") from None

    def save(self, document: Document) -> None:
        """Write the document as JSON to the file of -o, if there is one."""
        from ckptforensics.results import save_document

        if self.path is not None:
            save_document(document, self.path)
            self.hint(f"saved to {self.path}; 'ckpt show {self.path}' renders it again")

    def finish(self, checkpoint: Checkpoint, document: Document, strict: bool) -> None:
        """Print the document, say what was transferred, and fail if --strict finds a gap.

        Raises
        ------
        CkptError
            with `strict`, if the document has a skipped row.
        """
        from ckptforensics.sources import RemoteFiles

        self.emit(document)
        remote = checkpoint.source.remote
        if isinstance(remote, RemoteFiles):
            moved = remote.transfer
            self.hint(f"transferred {moved.fetched:,} of {moved.total:,} bytes")
        skipped = getattr(document, "skipped", ())
        if strict and skipped:
            rest = "" if len(skipped) == 1 else f" (and {len(skipped) - 1} more)"
            raise CkptError(f"--strict: {skipped[0].what} skipped: {skipped[0].reason}{rest}")

    def hint(self, text: str) -> None:
        """Tell the user something that is not a result."""
        if not self.quiet:
            click.echo(text, err=True)


def output_options(
    save_help: str | None, *, with_arrays: bool = False, forms: Sequence[str] = _FORMS
) -> Callable[[Function], Function]:
    """Add --format, -o (unless `save_help` is None), -q, -v and --no-progress.

    `with_arrays` is for a result that may be saved as safetensors; `forms` are those of --format.
    """

    def decorate(function: Function) -> Function:
        options = [
            click.option(
                "--format",
                "form",
                type=click.Choice(forms),
                default="table",
                show_default=True,
                help="How the result is printed.",
            ),
            click.option("-q", "--quiet", is_flag=True, help="No progress and no hints."),
            click.option("-v", "--verbose", is_flag=True, help="Every row of every table."),
            click.option("--no-progress", is_flag=True, help="No progress on stderr."),
        ]
        if save_help is not None:
            options.insert(
                1,
                click.option(
                    "-o",
                    "--output",
                    type=click.Path(dir_okay=False, path_type=Path),
                    callback=None if with_arrays else document_file,
                    help=save_help,
                ),
            )
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def document_file(
    context: click.Context, parameter: click.Parameter, value: Path | None
) -> Path | None:
    """A name under which `ckpt show` would find something else than JSON is a mistake."""
    if value is not None and value.suffix in (".safetensors", ".gguf"):
        raise UsageError("this result is saved as JSON", path=value, hint="change -o")
    return value


def open_model(
    model: Path,
    config: Path | None,
    output: Path | None,
    offline: bool,
    strict: bool,
    base: Path | None,
) -> Checkpoint:
    """Open MODEL; UsageError if -o names one of its own files."""
    from ckptforensics.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model, config=config, offline=offline, strict=strict, base=base)
    refuse_overwriting(output, checkpoint, model, base, config)
    return checkpoint


def refuse_overwriting(
    output: Path | None, checkpoint: Checkpoint | None, *given: Path | None
) -> None:
    """UsageError if a file to be written is one of the checkpoint's own or one that was given."""
    if output is None or not output.exists():
        return
    files = () if checkpoint is None else checkpoint.source.files
    folders = {file.parent for file in files}
    beside = [f / n for f in folders for n in ("config.json", "adapter_config.json")]
    inputs = [*given, *files, *beside]
    if any(file is not None and file.exists() and output.samefile(file) for file in inputs):
        raise UsageError("-o would overwrite the checkpoint", path=output, hint="change -o")


def model_argument(function: Function) -> Function:
    """Add MODEL, --config, --base, --offline and --strict."""
    function = click.argument("model", type=click.Path(path_type=Path))(function)
    return model_options(function)


def model_options(function: Function) -> Function:
    """Add --config, --base, --offline and --strict."""
    function = click.option(
        "--strict", is_flag=True, help="Fail where a family is only inferred or a part skipped."
    )(function)
    function = click.option(
        "--offline", is_flag=True, help="Find org/name in the local cache only."
    )(function)
    function = click.option(
        "--base",
        type=click.Path(path_type=Path),
        help="The model that MODEL, a LoRA or DoRA adapter, is merged onto.",
    )(function)
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A config.json in place of the one beside the weights.",
    )(function)


def fit_options(function: Function) -> Function:
    """Add --fit, --samples, --seed and --calibration."""
    for option in (
        click.option(
            "--calibration",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Residual-stream vectors for --fit sampled (safetensors, N x hidden size).",
        ),
        click.option("--seed", type=click.IntRange(0), help="Seed of --fit sampled.  [default: 0]"),
        click.option(
            "--samples",
            type=click.IntRange(2),
            help="Drawn vectors of --fit sampled.  [default: 100000]",
        ),
        click.option(
            "--fit",
            "fit_kind",
            type=click.Choice(["canonical", "paper", "sampled"]),
            default="canonical",
            show_default=True,
            help="How the FFN is fitted: closed form (covariant), the paper's convention, or "
            "least squares on vectors.",
        ),
    ):
        function = option(function)
    return function


def make_fit(
    kind: Any,
    samples: int | None,
    seed: int | None,
    calibration: Path | None,
    hidden_size: int,
) -> Fit:
    """The Fit the options ask for; UsageError if they contradict each other."""
    from ckptforensics.linear import Calibration, Fit

    if kind != "sampled":
        if samples is not None or seed is not None or calibration is not None:
            raise UsageError("--samples, --seed and --calibration need --fit sampled")
        return Fit(kind)
    if calibration is not None:
        if samples is not None or seed is not None:
            raise UsageError("--calibration supplies the vectors: --samples and --seed draw them")
        return Fit("sampled", calibration=Calibration.read(calibration, hidden_size))
    default = Fit("sampled")
    return Fit(
        "sampled",
        samples=default.samples if samples is None else samples,
        seed=default.seed if seed is None else seed,
    )


class _Bar:
    """A bar on the terminal, shown once the work has taken a moment."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._begun = 0.0
        self._done = 0
        self._label = ""
        self._total = 0
        self._note = ""
        self._moved = ""
        # Transfers are reported by the thread that reads ahead.
        self._lock = threading.Lock()

    def start(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._begun, self._done = time.monotonic(), 0

    def step(self, note: str = "") -> None:
        self._done += 1
        self._note = note
        self._update()

    def transferred(self, count: int) -> None:
        """So many bytes came from the Hub."""
        self._moved = f"{count / 1e6:,.1f} MB"
        if self._total:
            self._update()

    def _update(self) -> None:
        with self._lock:
            if self._bar is None and time.monotonic() - self._begun > _BAR_AFTER_SECONDS:
                self._show()
            if self._bar is not None:
                words = f"{self._moved} {self._note}".strip()
                self._bar.update(self._task, completed=self._done, note=words)

    def finish(self) -> None:
        with self._lock:
            self._total = 0  # what is still transferred is not shown
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self._label, total=self._total, note="")
        self._bar.start()


class _Lines:
    """A line now and then, for logs."""

    def __init__(self) -> None:
        self._last = 0.0
        self._done = 0
        self._moved = ""
        self._label = ""
        self._total = 0

    def start(self, label: str, total: int) -> None:
        self._label, self._total, self._done = label, total, 0
        self._last = time.monotonic()

    def step(self, note: str = "") -> None:
        self._done += 1
        self._line()

    def transferred(self, count: int) -> None:
        """So many bytes came from the Hub."""
        self._moved = f", {count / 1e6:,.1f} MB transferred"
        if self._label:
            self._line()

    def _line(self) -> None:
        if time.monotonic() - self._last > _LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            click.echo(f"{self._label} {self._done} of {self._total}{self._moved}", err=True)

    def finish(self) -> None:
        self._label = ""
