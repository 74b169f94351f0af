"""What comparisons cost: the table of docs/lineage-measurements.md.

    python -m benchmarks.lineage_cost [PART ...] [--folder DIR] [--write]

`signatures`: two saved signatures of 7B shape, `ckpt compare --fast` as a process. `smollm2`: the
criteria of the groups `exact` and `agreement` on SmolLM2 and a version with noise of 2%. `7b`: two
checkpoints of 7B shape (27 GB of disk; one built before with `python -m benchmarks.shapes
DIR/7b` is used and kept), every criterion at the default level. Seconds are printed as they are,
for the bars are in seconds; they are evidence, not a test.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np

from benchmarks import shapes
from benchmarks.common import ckpt, machine, require_quiet, run
from benchmarks.lineage_zoo import fill
from ckptforensics.compute.threads import all_cores
from ckptforensics.lineage.compare import compare_pair, open_model
from ckptforensics.lineage.pair import Pair
from ckptforensics.results import Signature, load_result
from tools import launder, transforms
from tools.smollm2 import cached_hf_layout

Row = tuple[str, str, str]
_LAYERS, _WIDTH = 32, 4096


_FIRST = ("exact", "agreement")
_EVERY = (*_FIRST, "correspondence", "change")


def bench_signatures(folder: Path) -> Iterator[Row]:
    """Two signatures of 7B shape, of random directions: no weights are there to be read."""
    source = folder / "planted.safetensors"
    run(ckpt("sign", "fixtures/planted", "--quiet", "--no-cache", "--output", str(source)))
    planted = load_result(source)
    assert isinstance(planted, Signature)
    paths = []
    for seed in range(2):
        generator = np.random.default_rng(seed)
        u, v = generator.standard_normal((2, _LAYERS, _WIDTH)).astype(np.float32)
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        row = planted.document.layers[0]
        rows = tuple(row.model_copy(update={"layer": n + 1}) for n in range(_LAYERS))
        record = planted.document.model.model_copy(
            update={"hidden_size": _WIDTH, "num_layers": _LAYERS}
        )
        document = planted.document.model_copy(update={"layers": rows, "model": record})
        sigma = np.abs(generator.standard_normal((_LAYERS, 2))).astype(np.float32)
        made = Signature(document, u, v, sigma, np.zeros(_LAYERS, np.float32))
        paths.append(folder / f"signature-{seed}.safetensors")
        made.save(paths[-1])
    spent = run(ckpt("compare", *map(str, paths), "--fast", "--quiet", "--format", "json"))
    yield "two 7B-shaped signatures, `ckpt compare --fast`", "under 5 s", f"{spent.seconds:.1f} s"


def bench_smollm2(folder: Path) -> Iterator[Row]:
    """Groups `exact` and `agreement` on SmolLM2 with a relative, and with an independent model."""
    base = transforms.read(cached_hf_layout())
    model = open_model(cached_hf_layout())
    model.sign()
    for name, other in (
        ("2% noise", launder.noise(base, 0.02)),
        ("random", transforms.random(base)),
    ):
        made = open_model(transforms.write(other, folder / name.replace("% ", "-"), "BF16"))
        made.sign()
        yield _groups(Pair(model, made), f"SmolLM2 and {name}", "under 3 s", _FIRST)


def bench_7b(folder: Path) -> Iterator[Row]:
    """Two checkpoints of 7B shape, the second with noise of 2%."""
    first = folder / "7b"
    if not first.is_dir():
        shapes.write(first, shapes.LLAMA2_7B)
    second = folder / "7b-noise"
    if not second.is_dir():
        _with_noise(first, second)
    models = [open_model(path) for path in (first, second)]
    for model in models:
        model.sign(progress=None)
    yield _groups(Pair(*models), "two 7B-shaped checkpoints", "under 60 s", _FIRST)
    yield _groups(Pair(*models), "the same, all that the default looks at", "-", _EVERY)


def _groups(pair: Pair, what: str, bar: str, groups: tuple[str, ...]) -> Row:
    with all_cores():
        record = compare_pair(pair)
    tests = [test for test in record.tests if test.group in groups]
    seconds = sum(test.seconds for test in tests)
    read = sum(test.bytes_read for test in tests)
    slowest = max(tests, key=lambda test: test.seconds)
    return (
        f"{what}: groups {', '.join(groups)}, signatures at hand",
        bar,
        f"{seconds:.1f} s, {read / 1e6:,.0f} MB read ({record.verdict}; the longest is "
        f"'{slowest.name}' with {slowest.seconds:.1f} s)",
    )


def _with_noise(source: Path, target: Path) -> None:
    """A copy whose matrices have noise of 2% of their standard deviation, shard by shard."""
    import torch
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save

    target.mkdir()
    generator = torch.Generator().manual_seed(1)
    for file in sorted(source.iterdir()):
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
            continue
        tensors = load_file(file)
        for name, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=generator)
            noise *= 0.02 * float(tensor.float().std())
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
        save(tensors, target / file.name)


PARTS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "signatures": bench_signatures,
    "smollm2": bench_smollm2,
    "7b": bench_7b,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--folder", type=Path, help="where models are built")
    parser.add_argument("--write", action="store_true", help="also into the page")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    require_quiet()
    lines = ["| work | bar | measured |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as temporary:
        for part in options.parts or PARTS:
            folder = options.folder or Path(temporary)
            for row in PARTS[part](folder):
                lines.append("| " + " | ".join(row) + " |")
                click.echo(lines[-1])
    lines += ["", "; ".join(f"{name}: {value}" for name, value in machine()) + "."]
    if options.write:
        fill("cost", "\n".join(lines))


if __name__ == "__main__":
    main()
