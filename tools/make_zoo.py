"""Train the models of `fixtures/zoo`, and write what became of them.

    python -m tools.make_zoo [DIR]        everything, from nothing: about 12 minutes of one core
    python -m tools.make_zoo --docs       only docs/zoo.md and its picture, from training.json

On one machine with the same versions two runs write the same weights. What was trained on what,
for how long, and what it cost is in `training.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tools.training import Text

ZOO = Path(__file__).parents[1] / "fixtures" / "zoo"
PRETRAINING, PEAK = 1200, 3e-3
EXPERTS, RANK = 4, 4


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes
    ----------
    parent : the model it starts from; without one from random weights
    seed : of the random weights, or of the order of the data in what follows
    early : name and step of an earlier checkpoint that is kept
    form : `full`, or `adapter` or `experts`
    """

    text: str
    steps: int
    peak: float
    parent: str | None = None
    seed: int = 0
    early: tuple[str, int] | None = None
    form: str = "full"


RECIPES = {
    "seed0": Recipe("topics", PRETRAINING, PEAK, early=("seed0-early", PRETRAINING // 4)),
    "seed1": Recipe("topics", PRETRAINING, PEAK, seed=1),
    "finetune": Recipe("source", 400, 5e-4, "seed0", 10),
    "finetune-long": Recipe("docstrings", 800, 5e-4, "seed0", 11),
    "lora": Recipe("source", 300, 2e-3, "seed0", 12, form="adapter"),
    "chain": Recipe("more source", 400, 5e-4, "finetune", 13),
    "experts": Recipe("docstrings", 300, 1e-3, "seed0", 14, form="experts"),
    "continued": Recipe("mixed", PRETRAINING, PEAK, "seed0", 15),
    "seed2": Recipe("topics", PRETRAINING, PEAK, seed=2),
}


def make(folder: Path) -> Path:
    """Train everything into a folder and write its `training.json`."""
    from tools import training

    training.quiet()
    tokenizer, topics = training.topics_text()
    texts = {"topics": topics}
    texts |= {name: training.split(tokenizer, found) for name, found in _documents().items()}
    models: dict[str, Any] = {}
    for name, recipe in RECIPES.items():
        started = time.monotonic()
        model = _train(name, recipe, texts[recipe.text], folder, tokenizer.to_str(), models)
        losses = {t: _loss(model, texts[t]) for t in sorted({"topics", recipe.text})}
        models[name] |= {"loss": losses, "seconds": round(time.monotonic() - started)}
        print(f"{name}: {losses} in {models[name]['seconds']} s", flush=True)
    facts = {
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in ("torch", "transformers", "tokenizers")},
        },
        "parameters": sum(p.numel() for p in training.new_model(training.CONFIG, 0).parameters()),
        "texts": {name: _describe(text) for name, text in texts.items()},
        "models": {name: {**models[name], **_digests(folder / name)} for name in models},
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    return folder


def _documents() -> dict[str, dict[str, str]]:
    from tools.training import docstrings, sources

    packages = sources("asyncio", "unittest", "email")
    return {
        "source": sources("logging", "http", "importlib", "urllib"),
        "docstrings": docstrings(sources("*")),
        "more source": sources("multiprocessing", "xml", "ctypes"),
        "mixed": packages | {f"docstrings of {n}": d for n, d in docstrings(packages).items()},
    }


def _train(
    name: str,
    recipe: Recipe,
    text: Text,
    folder: Path,
    tokenizer: str,
    models: dict[str, Any],
) -> torch.nn.Module:
    """Train one model, save it (and its earlier checkpoint), and note both in `models`."""
    from tools import training

    model, config = _start(recipe, folder)
    merge = training.add_adapters(model, RANK, recipe.seed) if recipe.form == "adapter" else None
    at = {}
    if recipe.early:
        early, step = recipe.early
        models[early] = {"steps": step, "first_steps_of": name}

        def save_early() -> None:
            models[early]["loss"] = {recipe.text: _loss(model, text)}
            training.save(model, config, tokenizer, folder / early)

        at[step] = save_early
    # Models from random weights see the same data in the same order.
    order = recipe.seed if recipe.parent else 0
    run = training.train(model, text, recipe.steps, recipe.peak, seed=order, at=at)
    if merge:
        merge()
    training.save(model, config, tokenizer, folder / name)
    models[name] = asdict(recipe) | asdict(run)
    return model


def _start(recipe: Recipe, folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The model before the training, and its `config.json`."""
    import tempfile

    from tools import training, transforms

    if recipe.parent is None:
        return training.new_model(training.CONFIG, recipe.seed), training.CONFIG
    if recipe.form != "experts":
        return training.load(folder / recipe.parent), training.CONFIG
    upcycled = transforms.upcycle(transforms.read(folder / recipe.parent), EXPERTS, recipe.seed)
    with tempfile.TemporaryDirectory() as scratch:
        return training.load(transforms.write(upcycled, Path(scratch), "F32")), upcycled.config


def _loss(model: torch.nn.Module, text: Text) -> float:
    from tools.training import held_out_loss

    return round(held_out_loss(model, text.held_out), 4)


def _describe(text: Text) -> dict[str, Any]:
    from tools.training import unigram_entropy

    entropy = round(unigram_entropy(text.held_out), 4)
    return {"train": len(text.train), "held_out": len(text.held_out), "unigram_entropy": entropy}


def _digests(folder: Path) -> dict[str, dict[str, str]]:
    files = sorted(folder.iterdir())
    return {"sha256": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}}


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", metavar="DIR", default=ZOO)
    parser.add_argument("--docs", action="store_true", help="only write docs/zoo.md again")
    arguments = parser.parse_args()
    if not arguments.docs:
        make(arguments.folder)
    if arguments.folder == ZOO:
        from tools.zoo_docs import write_docs

        print(write_docs())


if __name__ == "__main__":
    # One thread is what makes two runs the same; the variable is read when torch is imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
