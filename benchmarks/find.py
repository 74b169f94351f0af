"""How surely and how fast a copy is found: the tables of docs/find.md.

    python -m benchmarks.find [PART ...] [--models DIR] [--count N] [--write]

`recall`: true relatives among `--count` sketches of strangers: those of the zoo and of SmolLM2,
changed in every way of tools/, and the nearest strangers. `speed`: the search beside one plain
product over the same bytes. `held-out`: a catalog of 2,000 models with the sources of 40 hidden
copies, and 40 models that have no relative in it, by `find` itself with its comparisons. `index`:
an approximate index beside the exact search (needs usearch). `cost`: bytes and seconds of a sketch.
`--models` names a folder of `tools.make_independent`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks.common import fill_page, machine, ratios, require_quiet
from ckptforensics.arrays import Floats
from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import CkptError
from ckptforensics.registry.audit import add_models
from ckptforensics.registry.catalog.sketches import Vectors
from ckptforensics.registry.catalog.writer import open_writer
from ckptforensics.registry.find import SHORTLIST, FindOptions, find
from ckptforensics.registry.options import AuditOptions
from ckptforensics.registry.reading import Reading
from ckptforensics.registry.sketch.features import CHANNELS, WIDTH, WIDTHS, features
from ckptforensics.registry.sketch.make import sketch
from ckptforensics.registry.sketch.record import (
    BY,
    Sketch,
    attention_record,
    heads_record,
    sketch_of,
    tokens_record,
)
from ckptforensics.registry.sketch.score import LIMITS, score_of, scores
from ckptforensics.results.sketch import Sketched
from tools import attacks, launder, transforms
from tools.smollm2 import cached_hf_layout, gguf_file
from tools.strangers import Population, measured, stranger
from tools.zoo import ZOO

PAGE = Path(__file__).resolve().parents[1] / "docs" / "find.md"
_SHOWN = 20

Change = Callable[[transforms.Model], transforms.Model]


def _drawn(attack: attacks.Attack) -> Change:
    return lambda model: attack(model, np.random.default_rng(9))


EXACT: dict[str, Change] = {
    **{f"laundered: {name}": _drawn(how) for name, how in launder.EXACT.items()},
    "decoys": _drawn(attacks.decoys),
    "neurons in 8 copies": _drawn(attacks.copies),
    "padded with zeros": _drawn(attacks.padded),
    "heads split": _drawn(attacks.split_heads),
    "heads split, tokens renamed": _drawn(attacks.split_and_renamed),
}
LIGHT: dict[str, Change] = {
    "2% noise": lambda m: launder.noise(m, 0.02),
    "int8": transforms.int8,
    "Q4": transforms.q4,
    "Q4 of laundered": lambda m: transforms.q4(_drawn(launder.everything)(m)),
    "a layer dropped": transforms.drop_layer,
    "vocabulary extended": transforms.extend_vocabulary,
    "embeddings drawn anew": transforms.redraw_embeddings,
    "FFNs narrowed": transforms.narrow_ffn,
    "layers repeated": transforms.upscale,
}
HEAVY: dict[str, Change] = {
    "30% noise": lambda m: launder.noise(m, 0.3),
    "half pruned": transforms.prune,
    "2 of 4 pruned": transforms.prune_2_of_4,
    "width three quarters": transforms.narrow,
    "half pruned, embeddings drawn anew": lambda m: transforms.redraw_embeddings(
        transforms.prune(m)
    ),
    "30% noise, embeddings drawn anew": lambda m: transforms.redraw_embeddings(
        launder.noise(m, 0.3)
    ),
}
# How the copies were made that `find` itself is asked for.
_HIDDEN = (
    *("laundered: rotation", "laundered: all", "decoys", "padded with zeros"),
    "heads split, tokens renamed",
    *("2% noise", "int8", "Q4", "Q4 of laundered", "a layer dropped"),
)
# Relatives that were trained, all of seed0's run.
TUNED_LIGHT = ("lora", "finetune", "finetune-long", "experts")
TUNED_HEAVY = ("seed0-early", "chain", "continued")


@dataclass(frozen=True)
class Query:
    """A changed model: how hard the change is, what it is, its sketch and its source's name."""

    group: str
    name: str
    sketch: Sketch
    source: str


def sketched(path: Path) -> Sketch:
    """The sketch of a model as a catalog keeps it."""
    return sketch_of(sketch(open_checkpoint(path)).found)


def queries(sources: dict[str, Path], folder: Path) -> Iterator[Query]:
    """Every source changed in every way, written and sketched one after another."""
    groups = {"re-parameterised": EXACT, "lightly damaged": LIGHT, "heavily damaged": HEAVY}
    for name, path in sources.items():
        model = transforms.read(path)
        for group, changes in groups.items():
            for how, change in changes.items():
                try:
                    made = transforms.write(change(model), folder / "changed", "BF16")
                except (KeyError, ValueError, AssertionError) as problem:
                    click.echo(f"{how} does not apply to {name}: {problem}", err=True)
                    continue
                yield Query(group, how, sketched(made), name)
    for group, names in (("lightly damaged", TUNED_LIGHT), ("heavily damaged", TUNED_HEAVY)):
        for name in names:
            yield Query(group, name, sketched(ZOO / name), "seed0")


def _vectors_of(population: Population, numbers: range) -> Floats:
    return np.stack([features(stranger(population, number)) for number in numbers])


def vectors(
    population: Population, count: int, real: Sequence[Sketch], folder: Path | None
) -> Vectors:
    """The vectors of the real sketches, and behind them of so many strangers.

    Parameters
    ----------
    folder : where they are kept for the next part, and taken from
    """
    kept = None if folder is None else folder / f"strangers-{len(real)}-{count}.npy"
    if kept is not None and kept.is_file():
        return _as_vectors(np.load(kept))
    steps = [range(at, min(at + 500, count)) for at in range(0, count, 500)]
    rows = np.empty((len(real) + count, WIDTH), np.float32)
    rows[: len(real)] = [features(one) for one in real]
    with ProcessPoolExecutor(2) as pool:
        for step, found in zip(
            steps, pool.map(partial(_vectors_of, population), steps), strict=True
        ):
            rows[len(real) + step.start : len(real) + step.stop] = found
    if kept is not None:
        np.save(kept, rows)
    return _as_vectors(rows)


def _as_vectors(rows: Floats) -> Vectors:
    parts = np.split(rows, np.cumsum(WIDTHS)[:-1], axis=1)
    return Vectors({n: np.ascontiguousarray(p) for n, p in zip(CHANNELS, parts, strict=True)})


def bench_recall(options: argparse.Namespace) -> Iterator[str]:
    """A row a group and a row a change that was not always found."""
    sources = {f"seed{i}": ZOO / f"seed{i}" for i in range(3)}
    sources |= {path.name: path for path in _independent(options.models)[:3]}
    real = {name: sketched(path) for name, path in sources.items()}
    population = _population(options)
    for path in (cached_hf_layout(), gguf_file()):
        if path is not None:
            sources[path.name] = path
            real[path.name] = sketched(path)
    names = list(real)

    def known_as(number: int) -> Sketch:
        if number < len(names):
            return real[names[number]]
        return stranger(population, number - len(names))

    found = vectors(population, options.count, list(real.values()), options.folder)
    rows: dict[tuple[str, str], list[tuple[bool, int, float]]] = {}
    changed = {n: p for n, p in sources.items() if p.is_dir()}
    with tempfile.TemporaryDirectory() as folder:
        for query in queries(changed, Path(folder)):
            near = found.nearest(features(query.sketch), LIMITS, SHORTLIST) - 1
            known = {int(i): score_of(scores(query.sketch, known_as(int(i)))) for i in near}
            order = sorted(known, key=lambda i: -known[i])
            source = names.index(query.source)
            hit = source in order[:_SHOWN] and known[source] > 0
            false = [i for i in order if known[i] > 0 and i != source]
            rows.setdefault((query.group, query.name), []).append(
                (hit, len(false), known.get(source, -1.0))
            )
    yield (
        f"| change | models | source among the first {_SHOWN} | score, least | "
        "false candidates, mean |"
    )
    yield "|---|---|---|---|---|"
    for group in ("re-parameterised", "lightly damaged", "heavily damaged"):
        own = {name: found for (g, name), found in rows.items() if g == group}
        every = [one for found in own.values() for one in found]
        yield _recall_row(f"**{group}**", every)
        for name, found_rows in own.items():
            if group == "heavily damaged" or not all(hit for hit, _, _ in found_rows):
                yield _recall_row(name, found_rows)


def _recall_row(name: str, found: Sequence[tuple[bool, int, float]]) -> str:
    hits = sum(hit for hit, _, _ in found)
    least = min(score for _, _, score in found)
    false = np.mean([count for _, count, _ in found])
    return (
        f"| {name} | {len(found)} | {hits / len(found):.3f} | {max(least, -1):.2f} | {false:.2f} |"
    )


def bench_speed(options: argparse.Namespace) -> Iterator[str]:
    """The search beside a product of one vector with one array of as many bytes, in turns."""
    require_quiet()
    yield "| sketches | search, median | plain product of the same bytes | ratio |"
    yield "|---|---|---|---|"
    for count in (100_000, 1_000_000):
        generator = np.random.default_rng(0)
        arrays = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, width in zip(CHANNELS, WIDTHS, strict=True):
                file = Path(folder) / name
                with file.open("wb") as target:
                    for _ in range(count // 50_000):
                        rows = generator.standard_normal((50_000, width), dtype=np.float32)
                        target.write((rows / np.linalg.norm(rows, axis=1, keepdims=True)).tobytes())
                arrays[name] = np.memmap(file, np.float32, "r", shape=(count, width))
            whole = np.memmap(Path(folder) / "whole", np.float32, "w+", shape=(count, WIDTH))
            at = 0
            for array in arrays.values():
                whole[:, at : at + array.shape[1]] = array
                at += array.shape[1]
            query = np.concatenate([array[3] for array in arrays.values()])
            searched = Vectors(arrays)
            searching, multiplying = [], []
            for _ in range(9):
                begin = time.perf_counter()
                searched.nearest(query, LIMITS, SHORTLIST)
                middle = time.perf_counter()
                whole @ query
                searching.append(middle - begin)
                multiplying.append(time.perf_counter() - middle)
            search, plain = np.median(searching[2:]), np.median(multiplying[2:])
            ratio = ratios(searching[2:], multiplying[2:])
            del whole, arrays, searched
        yield (f"| {count:,} | {search * 1e3:,.0f} ms | {plain * 1e3:,.0f} ms | {ratio} |")


def bench_index(options: argparse.Namespace) -> Iterator[str]:
    """What an approximate index of each channel finds of the nearest 20 that the search finds."""
    from usearch.index import Index

    real = [sketched(ZOO / f"seed{i}") for i in range(3)]
    found = vectors(_population(options), options.count, real, options.folder)
    yield "| channel | the nearest one found | the nearest 20 | a search | exact |"
    yield "|---|---|---|---|---|"
    generator = np.random.default_rng(0)
    for name, array in found.channels.items():
        index = Index(ndim=array.shape[1], metric="ip", dtype="f32")
        index.add(np.arange(len(array)), array)
        first, hits, spent = 0, 0, np.zeros(2)
        for at in generator.choice(len(array), 100, replace=False):
            query = array[at] + 0.3 * array[at - 1]
            begin = time.perf_counter()
            near = index.search(query, 20).keys
            middle = time.perf_counter()
            exact = np.argsort(-(array @ query))[:20]
            spent += (middle - begin, time.perf_counter() - middle)
            first += int(exact[0] in near)
            hits += len(np.intersect1d(near, exact))
        yield (
            f"| {name} | {first / 100:.2f} | {hits / 2_000:.2f} | {spent[0] * 10:.2f} ms | "
            f"{spent[1] * 10:.1f} ms |"
        )


def bench_held_out(options: argparse.Namespace) -> Iterator[str]:
    """`find` on 40 hidden copies and 40 models without a relative, in a catalog of 2,000."""
    independent = _independent(options.models)
    if len(independent) < 25:
        raise SystemExit("held-out needs --models with 25 models of tools.make_independent or more")
    ways = [{**EXACT, **LIGHT}[name] for name in _HIDDEN]
    with tempfile.TemporaryDirectory() as temporary:
        folder, catalog = Path(temporary), Path(temporary) / "catalog.db"
        sources = [*(ZOO / f"seed{i}" for i in range(3)), *independent[:-20]]
        # Those that are left, at the end and half way through their training.
        left = independent[-20:]
        strangers = [*left, *(path.with_name(f"{path.name}-half") for path in left)]
        add_models([str(path) for path in sources], AuditOptions(catalog, workers=2, weights=False))
        population = measured([sketched(path) for path in left])
        with open_writer(catalog) as writer:
            for number in range(2_000 - len(sources)):
                one = stranger(population, number)
                heads, layers = one.spectra["heads"], one.spectra["attention"]
                record = Sketched(
                    tokens=tuple(tokens_record(by, one.tokens[by]) for by in BY),
                    heads=heads_record(heads, len(heads)),
                    attention=attention_record(layers, len(layers)),
                )
                writer.put_imported(f"stranger-{number}", None, Reading(), None, False, record)
        right, answers, seconds = 0, 0, []
        for number in range(40):
            source = sources[number % len(sources)]
            change = ways[number % len(ways)]
            copy = transforms.write(change(transforms.read(source)), folder / f"copy-{number}")
            found = find(str(copy), FindOptions(catalog, workers=1))
            seconds.append(found.seconds)
            answers += found.answer == "found"
            right += bool(found.matches) and Path(found.matches[0].path).name == source.name
        none = [find(str(path), FindOptions(catalog)) for path in strangers]
        yield "| models | right | seconds each, median |"
        yield "|---|---|---|"
        yield f"| 40 hidden copies: source named first | {right} | {np.median(seconds):.1f} |"
        yield f"| 40 hidden copies: answer `found` | {answers} | |"
        correct = sum(found.answer == "none" for found in none)
        yield (
            f"| {len(none)} models without a relative: answer `none` | {correct} | "
            f"{np.median([found.seconds for found in none]):.1f} |"
        )


def bench_cost(options: argparse.Namespace) -> Iterator[str]:
    """What a sketch reads and takes, and how large it is."""
    yield "| model | bytes of weights | read for a sketch | tokens only | seconds | record |"
    yield "|---|---|---|---|---|---|"
    named = [ZOO / "seed0", cached_hf_layout(), gguf_file(), options.large]
    for path in named:
        if path is None:
            continue
        try:
            checkpoint = open_checkpoint(path)
        except CkptError as problem:
            click.echo(str(problem), err=True)
            continue
        whole = sketch(checkpoint)
        tokens = sketch(open_checkpoint(path), heads=False)
        stored = sum(info.nbytes for info in checkpoint.store.tensors.values())
        yield (
            f"| {path.name} | {stored / 1e6:,.1f} MB | {whole.bytes_read / 1e6:,.1f} MB | "
            f"{tokens.bytes_read / 1e6:,.1f} MB | {whole.seconds:.1f} | "
            f"{len(whole.model_dump_json()) / 1e3:.0f} kB |"
        )


def _population(options: argparse.Namespace) -> Population:
    """What strangers are drawn from: models that are no source, of which they would have a part."""
    others = _independent(options.models)[3:]
    if len(others) < 8:
        raise SystemExit("strangers need --models with 11 models of tools.make_independent or more")
    return measured([sketched(path) for path in others])


def _independent(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    found = (path for path in folder.iterdir() if path.is_dir())
    return sorted(p for p in found if p.with_name(f"{p.name}-half").is_dir())


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "recall": bench_recall,
    "speed": bench_speed,
    "index": bench_index,
    "held-out": bench_held_out,
    "cost": bench_cost,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--models", type=Path, help="a folder of tools.make_independent")
    parser.add_argument("--folder", type=Path, help="where drawn strangers are kept")
    parser.add_argument("--large", type=Path, help="a large model, for its cost")
    parser.add_argument("--count", type=int, default=100_000, help="strangers of the recall")
    parser.add_argument("--write", action="store_true", help="also into the page")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    for part in options.parts or PARTS:
        lines = []
        for line in PARTS[part](options):
            lines.append(line)
            click.echo(line)
        lines += ["", "; ".join(f"{name}: {value}" for name, value in machine()) + "."]
        if options.write:
            fill_page(PAGE, part, "\n".join(lines))


if __name__ == "__main__":
    main()
