"""What `ckpt audit` costs beside plain reading, on a first night and when nothing has changed.

    python -m benchmarks.bench_audit [--write]    print the table, or put it into docs/audit.md

Models of three sizes are made and dropped from the page cache before every first night; `cat` reads
the same files in turn from the same cold start. Ratios are of whole processes, start of the
interpreter included. A second night runs over the same catalog.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks import shapes
from benchmarks.common import (
    ckpt,
    drop_from_cache,
    fill_page,
    machine,
    ratios,
    read_once,
    require_quiet,
    run,
)

PAGE = Path(__file__).parents[1] / "docs" / "audit.md"
SHAPES = {
    "SmolLM2's size": shapes.Shape(576, 1536, 30, vocabulary=49152, kv_share=3, head_dim=64),
    "1 GB": shapes.Shape(2048, 5632, 9, head_dim=64),
    "3 GB": shapes.Shape(4096, 11008, 6),
}
RUNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/audit.md")
    options = parser.parse_args()
    require_quiet()
    with tempfile.TemporaryDirectory() as folder:
        rows = [*machine(), *measure(Path(folder))]
    lines = ["| what | measured |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]
    click.echo("\n".join(lines))
    if options.write:
        fill_page(PAGE, "throughput", "\n".join(lines))


def measure(folder: Path) -> Iterator[tuple[str, str]]:
    """A row a shape and night."""
    for name, shape in SHAPES.items():
        models = folder / "models"
        shapes.write(models / "model", shape)
        files = sorted(models.rglob("*.safetensors"))
        gigabytes = sum(file.stat().st_size for file in files) / 1e9
        first, second, plain, signed = [], [], [], []
        for turn in range(RUNS):
            catalog = folder / f"{turn}.db"
            audit = ckpt(
                *("audit", str(models), "--catalog", str(catalog), "--fail-on", "never"),
                *("--neighbours", "0", "--workers", "2", "--quiet", "--memory", "4GB"),
            )
            drop_from_cache(files)
            plain.append(read_once(files))
            drop_from_cache(files)
            sign = ckpt("sign", str(models / "model"), "--digest", "--quiet", "--no-cache")
            signed.append(run(sign).seconds)
            drop_from_cache(files)
            first.append(run(audit, CKPT_CACHE="").seconds)
            second.append(run(audit, CKPT_CACHE="").seconds)
        shutil.rmtree(models)
        yield (
            f"{name}: {gigabytes:.2f} GB, first night",
            f"{ratios(first, plain)} times `cat` ({statistics.median(plain):.2f} s), "
            f"{ratios(first, signed)} times `ckpt sign --digest`; "
            f"{3600 / statistics.median(first):,.0f} models an hour",
        )
        yield (f"{name}, nothing has changed", f"{ratios(second, plain)} times `cat`")


if __name__ == "__main__":
    main()
