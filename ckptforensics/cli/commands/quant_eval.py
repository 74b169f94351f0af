"""`ckpt quant eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ckptforensics.cli.options import (
    ModelOptions,
    as_object,
    model_argument,
    model_options,
)
from ckptforensics.cli.output import OutputOptions, output_options
from ckptforensics.cli.running import (
    PlacementOptions,
    TextOptions,
    placement_options,
    plot_option,
    text_options,
)
from ckptforensics.errors import UsageError


@dataclass(frozen=True)
class RowOptions:
    """What is measured: --rows, --alpha, --layers, --calibration-file, --integer and --no-cache."""

    rows: str | None
    alpha: str
    layers: str | None
    calibration_file: Path | None
    integer: bool
    no_cache: bool


row_options = as_object(
    RowOptions,
    "how",
    click.option("--rows", help="Rows, separated by commas: none,rtn,rtn+planned.  [default: all]"),
    click.option(
        "--alpha",
        default="0.5",
        show_default=True,
        help="SmoothQuant's; of several, 0.3:0.9:0.05 or 0.5,0.85, the best on other text.",
    ),
    click.option("--layers", help="Layers whose down_proj is kept in place of the plan's modules."),
    click.option(
        "--calibration-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="UTF-8 text to calibrate on.  [default: text that is not evaluated]",
    ),
    click.option(
        "--integer", is_flag=True, help="Multiply 8-bit codes in place of rounded numbers."
    ),
    click.option(
        "--no-cache", is_flag=True, help="Neither go on with an interrupted run nor keep rows."
    ),
)


@click.command("eval")
@model_argument
@model_options
@row_options
@text_options(256, 4096, "help topics of Python")
@placement_options
@plot_option
@output_options(
    "Save the result as JSON, or as CSV or HTML by the name's ending.", kind="quantization"
)
def command(
    model: Path,
    opening: ModelOptions,
    how: RowOptions,
    what: TextOptions,
    where: PlacementOptions,
    plot: Path | None,
    out: OutputOptions,
) -> None:
    """Evaluate ways to quantize it on a text (needs torch).

    Perplexity with int8 weights and activations by round-to-nearest and SmoothQuant, with the
    planned modules kept in 16 bits, with as many by calibration and at random, and with today's
    other ways beside them. Finished rows are kept until all are, and an interrupted run goes on.
    """
    out.check_plot(plot)
    checkpoint = opening.open(model, out.output, plot)
    from ckptforensics.findings import SignatureCache
    from ckptforensics.findings.scope import layer_numbers
    from ckptforensics.runtime.experiments.quantize import ROWS, evaluate_quantization
    from ckptforensics.runtime.texts import Text

    names: Any = ROWS if how.rows is None else [name.strip() for name in how.rows.split(",")]
    text = what.chosen()
    other = None
    if how.calibration_file is not None:
        other = Text(file=how.calibration_file, window=text.window, limit=text.limit)
    document = evaluate_quantization(
        checkpoint,
        rows=names,
        alphas=_alphas(how.alpha),
        layers=None if how.layers is None else layer_numbers(how.layers),
        text=text,
        calibration=other,
        integer=how.integer,
        placement=where.placement(),
        progress=out.progress(checkpoint),
        cache=None if how.no_cache else SignatureCache.of_user(out.hint),
    )
    out.save(document)
    out.plot(document, plot)
    out.finish(checkpoint, document, opening.strict)


def _alphas(given: str) -> list[float]:
    """One, several with commas between them, or from:to:step with both ends."""
    try:
        if ":" not in given:
            return [float(word) for word in given.split(",")]
        first, last, step = (float(word) for word in given.split(":"))
        count = round((last - first) / step) if step > 0 else -1
        if not 0 <= count < 1000:
            raise ValueError("no such steps")
        return [round(first + i * step, 10) for i in range(count + 1)]
    except (ValueError, OverflowError):
        raise UsageError(
            f"cannot read the alpha {given!r}", hint="write it as 0.5, 0.5,0.85 or 0.3:0.9:0.05"
        ) from None
