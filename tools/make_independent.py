"""Train independent models of the same text, configuration and data order: only the seed differs.

    python -m tools.make_independent DIR [--count N] [--size small|large|brief] [--first SEED]

How alike two models are that share all but their initialisation is what a comparison has to be
calibrated against. Each is saved after half of the steps, too, as NAME-half. Models that are
there already are left alone, so that a broken run can be resumed. About a minute of one core each,
`brief` a quarter of that: as `small`, but with fewer steps.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

STEPS, PEAK = {"small": 900, "large": 700, "brief": 240}, 3e-3
_SIZES = {
    "small": {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 3,
        "head_dim": 16,
    },
    "large": {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "head_dim": 24,
    },
    "brief": {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 3,
        "head_dim": 16,
    },
}


def independent(folder: Path, size: str, count: int, first: int = 100) -> Iterator[Path]:
    """Train what is missing, and yield the folders of the finished models.

    Parameters
    ----------
    size : `small` or `brief` (width 64, 3 layers), or `large` (width 96, 4 layers)
    first : seed of the first model; the others follow
    """
    from tools import training

    training.quiet()
    tokenizer, text = training.topics_text()
    entropy = training.unigram_entropy(text.held_out)
    config = {**training.CONFIG, **_SIZES[size]}
    for seed in range(first, first + count):
        target, half = folder / f"{size}-{seed}", folder / f"{size}-{seed}-half"
        report = target / "training.json"
        if not report.exists():
            started = time.monotonic()
            model = training.new_model(config, seed)

            def save_half(model: object = model, half: Path = half) -> None:
                training.save(model, config, tokenizer.to_str(), half)

            steps = STEPS[size]
            run = training.train(model, text, steps, PEAK, at={steps // 2: save_half}, measure=4)
            training.save(model, config, tokenizer.to_str(), target)
            seconds = round(time.monotonic() - started)
            facts = {"seed": seed, "unigram_entropy": round(entropy, 4), "seconds": seconds}
            report.write_text(json.dumps({**facts, **asdict(run)}, indent=2) + "\n")
        yield target


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--size", choices=[*_SIZES], default="small")
    parser.add_argument("--first", type=int, default=100, metavar="SEED")
    arguments = parser.parse_args()
    for path in independent(arguments.folder, arguments.size, arguments.count, arguments.first):
        facts = json.loads((path / "training.json").read_text())
        loss, entropy = facts["held_out"][-1][1], facts["unigram_entropy"]
        print(f"{path}: held-out loss {loss} (unigram entropy {entropy})", flush=True)


if __name__ == "__main__":
    # One thread is what makes two runs the same; the variable is read when torch is imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
