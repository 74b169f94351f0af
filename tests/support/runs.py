"""A made-up training run in which a planted defect grows and turns into its final direction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.support import models
from tools.make_planted import CONFIG, planted_tensors

# Of each checkpoint: its step, how much of the final defect it has, and how many degrees its
# direction is away from the final one.
GROWTH = ((0, 0.0, 0), (100, 0.15, 70), (500, 0.6, 30), (1000, 1.0, 4), (2000, 0.8, 0))
NEURONS = {3: 41, 7: 97}


def write_run(folder: Path) -> list[Path]:
    """Write the checkpoints as `checkpoint-STEP`; their folders, in the order of their steps."""
    final = planted_tensors()
    aside = np.random.default_rng(1).standard_normal(CONFIG["hidden_size"])
    written = []
    for step, share, degrees in GROWTH:
        tensors = dict(final)
        for layer, neuron in NEURONS.items():
            name = f"model.layers.{layer - 1}.mlp.down_proj.weight"
            down = final[name].copy()
            size = np.linalg.norm(down[:, neuron])
            direction = down[:, neuron] / size
            other = aside - direction * (direction @ aside)
            other /= np.linalg.norm(other)
            turn = np.radians(degrees)
            down[:, neuron] = share * size * (np.cos(turn) * direction + np.sin(turn) * other)
            tensors[name] = down
        place = folder / f"checkpoint-{step}"
        stored = {n: torch.from_numpy(t.astype(np.float32)) for n, t in tensors.items()}
        models.write(place, stored, CONFIG)
        written.append(place)
    return written
