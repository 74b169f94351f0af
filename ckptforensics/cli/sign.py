"""`ckpt sign`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.common import (
    Output,
    fit_options,
    make_fit,
    model_argument,
    open_model,
    output_options,
)
from ckptforensics.errors import UsageError


@click.command("sign")
@model_argument
@fit_options
@click.option("--digest", is_flag=True, help="Also compute the SHA-256 of whole files.")
@output_options(
    "Save the signature: .safetensors with its arrays, or .json without.", with_arrays=True
)
def command(
    model: Path,
    config: Path | None,
    base: Path | None,
    offline: bool,
    strict: bool,
    fit_kind: str,
    samples: int | None,
    seed: int | None,
    calibration: Path | None,
    digest: bool,
    form: str,
    output: Path | None,
    quiet: bool,
    verbose: bool,
    no_progress: bool,
) -> None:
    """Sign a checkpoint: its singular defect directions, layer by layer.

    The fingerprint is the same for the same weights in any container, and few bits away for
    fine-tuned or quantized versions.
    """
    if output is not None and output.suffix not in (".safetensors", ".json"):
        raise UsageError(
            "a signature is saved as .safetensors or .json", path=output, hint="change -o"
        )
    from ckptforensics.findings import sign

    out = Output(form, output, quiet, verbose, not no_progress)
    checkpoint = open_model(model, config, output, offline, strict, base)
    width = checkpoint.architecture.sizes.hidden_size
    fit = make_fit(fit_kind, samples, seed, calibration, width)
    signature = sign(checkpoint, fit=fit, digest=digest, progress=out.progress(checkpoint))
    if output is not None and output.suffix == ".safetensors":
        signature.save(output)
        out.hint(f"saved to {output}; 'ckpt show {output}' renders it again")
    else:
        out.save(signature.document)
    out.finish(checkpoint, signature.document, strict)
