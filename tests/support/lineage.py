"""Pairs of small models that are made from each other without training."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Level, Pair
from tests.support.models import save, tiny_llama

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 300,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}


@cache
def _llama(seed: int, folder: Path) -> Any:
    from tools import transforms

    return transforms.read(save(tiny_llama(seed, **SIZES), folder / f"llama-{seed}"))


def llama(folder: Path, seed: int = 0) -> Any:
    """A model of the transformers library with random weights that BF16 has, as arrays.

    Its embeddings have a mean and coordinates of different size, as trained ones have.
    """
    from tools import transforms

    model = _llama(seed, folder)
    generator = np.random.default_rng(seed)
    width = model.config["hidden_size"]
    sizes, mean = generator.lognormal(0, 0.7, width), generator.standard_normal(width) * 0.3
    tensors = {
        name: model.tensors[name] * sizes + mean
        for name in (transforms.EMBEDDING, transforms.HEAD)
        if name in model.tensors
    }
    return rounded(model.change({n: np.float32(t) for n, t in tensors.items()}))


def rounded(model: Any) -> Any:
    """With weights that BF16 has."""
    import torch

    return model.change(
        {n: torch.tensor(t).bfloat16().float().numpy() for n, t in model.tensors.items()}
    )


def tuned(model: Any, share: float = 0.03, seed: int = 1) -> Any:
    """Every matrix changed in all directions, by a share of its norm."""
    generator = np.random.default_rng(seed)

    def change(_: str, t: np.ndarray) -> np.ndarray:
        rows, columns = t.shape
        # Singular values that fall off slowly, as those of a training run's change.
        few = generator.standard_normal((rows, 8)) @ generator.standard_normal((8, columns)) / 8
        noise = few + generator.standard_normal(t.shape)
        return np.float32(t + share * noise * np.linalg.norm(t) / np.linalg.norm(noise))

    return model.map(change)


def adapted(model: Any, rank: int = 4, share: float = 0.05, seed: int = 2) -> Any:
    """A low rank added to every matrix of a layer."""
    generator = np.random.default_rng(seed)

    def change(_: str, t: np.ndarray) -> np.ndarray:
        low = generator.standard_normal((t.shape[0], rank)) @ generator.standard_normal(
            (rank, t.shape[1])
        )
        return np.float32(t + share * low * np.linalg.norm(t) / np.linalg.norm(low))

    return model.map(change)


def pair_of(
    folder: Path,
    a: Any,
    b: Any,
    *,
    dtypes: tuple[str, str] = ("BF16", "BF16"),
    level: Level = "default",
) -> Pair:
    """Both models written and opened."""
    from tools import transforms

    models = []
    for name, model, dtype in (("a", a, dtypes[0]), ("b", b, dtypes[1])):
        path = transforms.write(model, folder / name, dtype)
        models.append(Model(name, open_checkpoint(path)))
    return Pair(models[0], models[1], level)
