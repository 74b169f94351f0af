"""`ckpt quant diff`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.options import MODEL, offline_option, refuse_overwriting
from ckptforensics.cli.output import OutputOptions, output_options


@click.command("diff")
@click.argument("source", type=MODEL)
@click.argument("quantized", type=MODEL)
@offline_option
@click.option("--strict", is_flag=True, help="Fail where a matrix is skipped.")
@output_options(
    "Save the result as JSON, or as CSV by the name's ending.", kind="quantization-diff"
)
def command(source: Path, quantized: Path, offline: bool, strict: bool, out: OutputOptions) -> None:
    """Compare a quantized copy with its source, tensor by tensor.

    SOURCE is the model that was quantized, QUANTIZED the copy; each as other commands take MODEL.
    """
    from ckptforensics.checkpoint import open_checkpoint
    from ckptforensics.findings.model import refuse_result
    from ckptforensics.quantization.diff import diff_quantized

    models = []
    for named in (source, quantized):
        refuse_result(named)
        models.append(open_checkpoint(named, offline=offline))
        refuse_overwriting(out.output, models[-1], named)
    document = diff_quantized(*models, progress=out.progress(*models))
    out.save(document)
    out.finish(models[1], document, strict)
