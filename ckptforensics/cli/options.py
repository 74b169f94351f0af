"""Options that several commands share, each group of them as one object."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from ckptforensics.errors import UsageError

if TYPE_CHECKING:
    from ckptforensics.checkpoint import Checkpoint
    from ckptforensics.linear import Fit

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]


def as_object(kind: type, name: str, *options: Decorator[Any]) -> Decorator[Any]:
    """Add options to a command, whose function gets their values as one object.

    Parameters
    ----------
    kind : dataclass whose fields are named as the options' values; a field without an option keeps
        its default
    name : of the function's parameter
    options : made by `click.option`, in the order of the help
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def with_object(**values: Any) -> Any:
            own = {f.name: values.pop(f.name) for f in fields(kind) if f.name in values}
            return function(**{name: kind(**own)}, **values)

        for option in reversed(options):
            with_object = option(with_object)
        return with_object

    return decorate


def as_arguments(command: click.Command, values: Mapping[str, Any]) -> list[str]:
    """The options with which a command line gives `command` these values, by parameter name.

    Every option that the command has is looked up, so that none can be forgotten.
    """
    words = []
    for option in command.params:
        if not isinstance(option, click.Option):
            continue
        assert option.name is not None and not option.multiple and option.nargs == 1
        value, flag = values[option.name], max(option.opts, key=len)
        if option.is_flag:
            words += [flag] if value else []
        elif value is not None:
            words.append(f"{flag}={value}")
    return words


@dataclass(frozen=True)
class ModelOptions:
    """How a model is opened: --config, --base, --offline and --strict."""

    config: Path | None
    base: Path | None
    offline: bool
    strict: bool

    def open(self, model: Path, *written: Path | None) -> Checkpoint:
        """Open the model; UsageError if a file to be written is one of its own."""
        from ckptforensics.checkpoint import open_checkpoint
        from ckptforensics.findings.model import refuse_result

        refuse_result(model)
        checkpoint = open_checkpoint(
            model, config=self.config, offline=self.offline, strict=self.strict, base=self.base
        )
        for file in written:
            refuse_overwriting(file, checkpoint, model, self.base, self.config)
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


@dataclass(frozen=True)
class FitOptions:
    """How the FFN is fitted: --fit, --samples, --seed and --calibration."""

    fit_kind: Literal["canonical", "paper", "sampled"]
    samples: int | None
    seed: int | None
    calibration: Path | None

    def fit(self, hidden_size: int) -> Fit:
        """The Fit the options ask for; UsageError if they contradict each other."""
        from ckptforensics.linear import Calibration, Fit

        given = {"samples": self.samples, "seed": self.seed}
        drawn: dict[str, Any] = {name: n for name, n in given.items() if n is not None}
        if self.fit_kind != "sampled":
            if drawn or self.calibration is not None:
                raise UsageError("--samples, --seed and --calibration need --fit sampled")
            return Fit(self.fit_kind)
        if self.calibration is None:
            return replace(Fit("sampled"), **drawn)
        if drawn:
            raise UsageError("--calibration supplies the vectors: --samples and --seed draw them")
        return Fit("sampled", calibration=Calibration.read(self.calibration, hidden_size))


class _Model(click.Path):
    """A path that is not empty: that would be the directory one happens to be in."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value == "":
            raise UsageError("MODEL is empty", hint="name a directory, a file or org/name")
        found = super().convert(value, param, ctx)
        if isinstance(found, Path) and "://" in str(value):
            from ckptforensics.sources import as_path

            return as_path(str(value))
        return found


MODEL = _Model(path_type=Path)
# The name as it was given.
MODEL_NAME = _Model(path_type=str)
model_argument = click.argument("model", type=MODEL)


class Between(click.FloatRange):
    """A number in a range: infinity is in none, nor is 'nan', which no comparison keeps out."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The number; a usage error if it is not finite or out of range."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number", param, ctx)
        return found


def as_bytes(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A callback of options that take an amount of memory."""
    from ckptforensics.jobs.memory import memory_size

    try:
        return None if value is None else memory_size(value)
    except ValueError as problem:
        raise click.BadParameter(str(problem), context, parameter) from None


memory_option = click.option(
    "--memory",
    callback=as_bytes,
    help="Memory that may be used, such as 8GB: by all processes together.",
)
jobs_option = click.option(
    "--jobs", type=click.IntRange(1), help="Models signed side by side.  [default: 1]"
)


def workers_option(what: str) -> Decorator[Any]:
    """How many processes at a time, of what."""
    return click.option(
        "--workers",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help=f"{what} at a time, each in a process of its own.",
    )


def level_option(what: str) -> Decorator[Any]:
    """How thoroughly what is compared."""
    return click.option(
        "--level",
        type=click.Choice(["fast", "default", "thorough"]),
        default="default",
        show_default=True,
        help=f"How thoroughly {what} are compared.",
    )


offline_option = click.option(
    "--offline", is_flag=True, help="Find org/name in the local cache only."
)

model_options = as_object(
    ModelOptions,
    "opening",
    click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A config.json in place of the one beside the weights.",
    ),
    click.option(
        "--base",
        type=click.Path(path_type=Path),
        help="The model that MODEL, a LoRA or DoRA adapter, is merged onto.",
    ),
    offline_option,
    click.option(
        "--strict", is_flag=True, help="Fail where a family is only inferred or a part skipped."
    ),
)

fit_options = as_object(
    FitOptions,
    "fitting",
    click.option(
        "--fit",
        "fit_kind",
        type=click.Choice(["canonical", "paper", "sampled"]),
        default="canonical",
        show_default=True,
        help="How the FFN is fitted: closed form (covariant), the paper's convention, or "
        "least squares on vectors.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(2),
        help="Drawn vectors of --fit sampled.  [default: 100000]",
    ),
    click.option("--seed", type=click.IntRange(0), help="Seed of --fit sampled.  [default: 0]"),
    click.option(
        "--calibration",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Residual-stream vectors for --fit sampled (safetensors, N x hidden size).",
    ),
)
