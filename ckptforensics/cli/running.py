"""Options of the commands that run a model: where, and on which text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptforensics.cli.options import Decorator, as_bytes, as_object
from ckptforensics.errors import UsageError

if TYPE_CHECKING:
    from ckptforensics.runtime.texts import Text
    from ckptforensics.runtime.weights import Placement

_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class PlacementOptions:
    """Where the model runs: --device, --dtype and --memory."""

    device: str
    dtype: str
    memory: int | None

    def placement(self) -> Placement:
        """The placement that the options ask for."""
        from ckptforensics.runtime.weights import Placement

        return Placement(self.device, self.dtype, self.memory)


@dataclass(frozen=True)
class TextOptions:
    """What the model runs on: --text and the options beside it."""

    text: str | None
    text_file: Path | None
    dataset: str | None
    token_ids: str | None
    window: int
    limit: int | None
    bos: bool
    seed: int | None = None

    def chosen(self) -> Text:
        """The text that the options name; UsageError if the token ids are none."""
        from ckptforensics.runtime.texts import Text

        ids = None
        if self.token_ids is not None:
            words = self.token_ids.replace(",", " ").split()
            if not words or not all(w.isascii() and w.isdecimal() and len(w) < 10 for w in words):
                raise UsageError(
                    f"cannot read the token ids {self.token_ids!r}", hint="write them as 1,504,30"
                )
            ids = [int(word) for word in words]
        return Text(
            self.text,
            self.text_file,
            self.dataset,
            ids,
            self.window,
            self.limit,
            self.bos,
            self.seed,
        )


placement_options = as_object(
    PlacementOptions,
    "where",
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 or mps."),
    click.option(
        "--dtype",
        type=click.Choice(_DTYPES),
        default="float32",
        show_default=True,
        help="Element type that weights and states have.",
    ),
    click.option(
        "--memory",
        callback=as_bytes,
        help="Memory that weights may take, such as 8GB; the rest is offloaded (accelerate).",
    ),
)


def text_options(
    window: int, limit: int | None, default: str, *, draws: bool = True
) -> Decorator[Any]:
    """Add --text, --text-file, --dataset, --token-ids, --window, --limit, --bos and --seed.

    Parameters
    ----------
    window, limit : defaults, in tokens
    default : what is run if no text is named, for the help
    draws : with --seed; a command that draws other things has its own
    """
    seed = click.option(
        "--seed",
        type=click.IntRange(0),
        help="Draw the windows from the whole text.  [default: from its beginning]",
    )
    return as_object(
        TextOptions,
        "what",
        click.option("--text", help=f"Text to run.  [default: {default}]"),
        click.option(
            "--text-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="UTF-8 file with the text.",
        ),
        click.option(
            "--dataset", type=click.Choice(["wikitext"]), help="Text from the Hub in its place."
        ),
        click.option("--token-ids", help="Tokens in place of text: 1,504,30."),
        click.option(
            "--window",
            type=click.IntRange(1),
            default=window,
            show_default=True,
            help="Tokens of a window; windows do not overlap.",
        ),
        click.option(
            "--limit",
            type=click.IntRange(1),
            default=limit,
            show_default=True,
            help="Tokens at most.",
        ),
        click.option(
            "--bos", is_flag=True, help="Begin every window with the begin-of-sequence token."
        ),
        *([seed] if draws else []),
    )


plot_option = click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw it: FILE.png, .svg or .pdf."
)
seed_option = click.option(
    "--seed",
    "choices",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of random choices.",
)
