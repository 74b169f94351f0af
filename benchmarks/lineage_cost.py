"""What comparisons cost: the table of docs/lineage-measurements.md.

    python -m benchmarks.lineage_cost [PART ...] [--folder DIR] [--write]

`signatures`: two saved signatures of 7B shape, `ckpt compare --fast` as a process. `smollm2`:
SmolLM2 and a model for each verdict. `7b`: two checkpoints of 7B shape (27 GB of disk; one built
before with `python -m benchmarks.shapes DIR/7b` is used and kept), and two of fewer layers (9 GB).
Measured is all that a comparison does after signing, and the command as a process; the median of
three and their range. Seconds are printed as they are,
for the bars are in seconds; they are evidence, not a test.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from benchmarks import shapes
from benchmarks.common import (
    ckpt,
    drop_from_cache,
    machine,
    read_once,
    require_quiet,
    run,
    spread,
)
from benchmarks.lineage_zoo import fill
from ckptforensics.lineage.compare import compare, open_model
from ckptforensics.results import Signature, load_result
from tools import launder, transforms
from tools.smollm2 import cached_hf_layout

Row = tuple[str, str, str]
_LAYERS, _WIDTH = 32, 4096


# Layers of two models of 7B shape that have nothing in common: with all of them, 40 GB of disk.
_OTHER_LAYERS = 8
_TURNS = 3


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
    """SmolLM2 and a model for each verdict."""
    source = cached_hf_layout()
    base = transforms.read(source)
    made = {
        "a copy": base,
        "laundered": launder.EXACT["all"](base, np.random.default_rng(5)),
        "2% noise": launder.noise(base, 0.02),
        "half of its layers": _half(base),
        "random": transforms.random(base),
    }
    pairs = {}
    for name, model in made.items():
        target = folder / name.replace("% ", "-").replace(" ", "-")
        pairs[f"SmolLM2 and {name}"] = source, transforms.write(model, target, "BF16")
    yield from _pairs(pairs, folder, "3 s", warm=True)


def _half(model: transforms.Model) -> transforms.Model:
    """A stranger but for the first half of the layers."""
    own = tuple(f"model.layers.{layer}." for layer in range(model.layers // 2))
    kept = {name: tensor for name, tensor in model.tensors.items() if name.startswith(own)}
    return transforms.random(model).change(kept)


def bench_7b(folder: Path) -> Iterator[Row]:
    """Checkpoints of 7B shape: one and its noisy copy, and two of fewer layers that are strangers.

    Two whole ones do not fit the memory of most machines, so that all are read from the disk.
    """
    first = folder / "7b"
    if not first.is_dir():
        shapes.write(first, shapes.LLAMA2_7B)
    second = folder / "7b-noise"
    if not second.is_dir():
        _with_noise(first, second)
    few = []
    for seed in range(2):
        few.append(folder / f"7b-{_OTHER_LAYERS}-layers-{seed}")
        if not few[-1].is_dir():
            shapes.write(few[-1], replace(shapes.LLAMA2_7B, layers=_OTHER_LAYERS, seed=seed))
    pairs = {
        "7B shape and 2% noise": (first, second),
        f"7B shape, {_OTHER_LAYERS} layers, two of other weights": (few[0], few[1]),
    }
    yield from _pairs(pairs, folder, "30 s", warm=False)


def _pairs(
    pairs: Mapping[str, tuple[Path, Path]], folder: Path, bar: str, *, warm: bool
) -> Iterator[Row]:
    """The whole comparison of each pair, and the whole command, signatures at hand.

    All pairs take turns, so that a busy moment meets all.
    """
    cache = {"CKPT_CACHE": str(folder / "cache")}
    signatures = {}
    for path in {path for pair in pairs.values() for path in pair}:
        signatures[path] = open_model(path).sign()
    compared: dict[str, list[tuple[float, int, str]]] = {name: [] for name in pairs}
    processes: dict[str, list[float]] = {name: [] for name in pairs}
    for pair in pairs.values():  # fills the cache of signatures, and that of the bytecode
        run(ckpt("compare", *map(str, pair), "--quiet", "--format", "json"), **cache)
    for _ in range(_TURNS):
        for name, pair in pairs.items():
            _settle(pair, warm=warm)
            compared[name].append(_compared(pair, signatures))
            _settle(pair, warm=warm)
            spent = run(ckpt("compare", *map(str, pair), "--quiet", "--format", "json"), **cache)
            processes[name].append(spent.seconds)
    state = "files in memory" if warm else "files on disk"
    for name in pairs:
        seconds, read, verdicts = zip(*compared[name], strict=True)
        what = f"{verdicts[0]}; {read[0] / 1e6:,.0f} MB read, {state}"
        yield f"{name}, whole comparison", f"under {bar}", f"{spread(list(seconds))}; {what}"
        yield f"{name}, `ckpt compare`", "-", spread(processes[name])


def _compared(
    pair: tuple[Path, Path], signatures: Mapping[Path, Signature]
) -> tuple[float, int, str]:
    """Seconds from opening to the document, bytes read, and the verdict."""
    begun = time.perf_counter()
    models = [open_model(path) for path in pair]
    for model, path in zip(models, pair, strict=True):
        model.take(signatures[path])
    document = compare(models)
    seconds = time.perf_counter() - begun
    return seconds, sum(model.bytes_read for model in models), document.pairs[0].verdict


def _settle(pair: tuple[Path, Path], *, warm: bool) -> None:
    """Have the files of both models in the operating system's cache, or not at all."""
    files = [file for path in pair for file in path.glob("*.safetensors")]
    if warm:
        read_once(files)
    else:
        drop_from_cache([file.resolve() for file in files])


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
