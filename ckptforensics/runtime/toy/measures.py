"""What is measured of a network of the Bigram-Backcopy task (arXiv 2410.13835, section 3)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ckptforensics.runtime import libraries
from ckptforensics.runtime.toy.bigram import BigramBackcopy, Sequences
from ckptforensics.runtime.toy.network import Shape, run
from ckptforensics.runtime.toy.recipes import NO_STEP, Recipe, rounded
from ckptforensics.runtime.toy.statistics import Statistics

# Sequences that a network is measured on, other ones than those of any training step.
MEASURED = 32


class BigramTask:
    """The Bigram-Backcopy task for `training.train`.

    Parameters
    ----------
    statistics : of the text
    """

    name = "bigram-backcopy"
    model_type = "bigram_backcopy"
    begin = 0

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self.text = statistics.name
        self.digest = hashlib.sha256(statistics.transitions.tobytes()).hexdigest()
        self._task = BigramBackcopy(statistics)

    @property
    def vocabulary(self) -> int:
        """Symbols, `<s>` among them."""
        return len(self.statistics.symbols)

    def batch(self, shape: Shape, recipe: Recipe, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Sequences of a step, and what follows each symbol."""
        generator = np.random.default_rng([recipe.seed, step])
        ids = self._task.draw(recipe.batch, generator, shape.context)
        return ids[:, :-1].copy(), ids[:, 1:].copy()

    def held_out(self, shape: Shape, seed: int) -> Sequences:
        """Sequences that no step draws."""
        return self._task.sequences(MEASURED, np.random.default_rng([seed, NO_STEP]), shape.context)

    def measure(self, shape: Shape, tensors: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """A line of the log."""
        return asdict(measured(shape, tensors, self.held_out(shape, seed)))

    def tokenizer(self) -> str:
        """A tokenizer of single characters, as `tokenizer.json`."""
        vocabulary = {symbol: i for i, symbol in enumerate(self.statistics.symbols)}
        split = {
            "type": "Split",
            "pattern": {"Regex": "(?s)."},
            "behavior": "Isolated",
            "invert": False,
        }
        begin = {
            "id": 0,
            "content": self.statistics.symbols[0],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": self.statistics.symbols[0]}
        return json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [begin],
                "normalizer": None,
                "pre_tokenizer": split,
                "post_processor": None,
                "decoder": {"type": "Fuse"},
                "model": model,
            }
        )


@dataclass(frozen=True)
class Measured:
    """Measures of a network on given sequences.

    Attributes
    ----------
    loss : nats a symbol
    excess_trigger, excess_other : loss above that of the oracle, behind triggers and elsewhere
    attention : a layer, mean attention to `<s>` of queries that are no triggers (nor `<s>`)
    logit_gap : a layer, mean over these of the logit to `<s>` less that to the other keys
    value_norm : a layer, |W_O v| of `<s>`
    residual_norm, others_norm : a layer, norm of `<s>` after it, and the mean of the others
    """

    loss: float
    excess_trigger: float
    excess_other: float
    attention: list[float]
    logit_gap: list[float]
    value_norm: list[float]
    residual_norm: list[float]
    others_norm: list[float]


def measured(
    shape: Shape,
    tensors: Mapping[str, Any],
    sequences: Sequences,
    without: frozenset[tuple[int, str]] = frozenset(),
) -> Measured:
    """Run the network on the sequences and measure it.

    Parameters
    ----------
    without : as in `network.run`; what a branch that is taken away would have done is NaN
    """
    torch = libraries.torch()
    device = next(iter(tensors.values())).device
    query = torch.from_numpy(~sequences.triggers).to(device)
    query[:, 0] = False
    found = {
        name: [float("nan")] * shape.layers
        for name in ("attention", "logit_gap", "value_norm", "residual_norm", "others_norm")
    }

    def watch(layer: int, what: str, tensor: Any) -> None:
        if what == "weights":
            to_first = tensor[..., 0].mean(dim=1)
            found["attention"][layer] = rounded(to_first[query].mean())
        elif what == "logits":
            found["logit_gap"][layer] = rounded(_gap(tensor)[query].mean())
        elif what == "written":
            found["value_norm"][layer] = rounded(tensor[:, :, 0].sum(dim=1).norm(dim=-1).mean())
        elif what == "state":
            norms = tensor.norm(dim=-1)
            found["residual_norm"][layer] = rounded(norms[:, 0].mean())
            found["others_norm"][layer] = rounded(norms[:, 1:].mean())

    losses = token_losses(shape, tensors, sequences, watch=watch, without=without)
    excess = losses - sequences.oracle
    return Measured(
        rounded(losses.mean()),
        rounded(excess[sequences.triggers].mean()),
        rounded(excess[~sequences.triggers].mean()),
        **found,
    )


def token_losses(
    shape: Shape, tensors: Mapping[str, Any], sequences: Sequences, **options: Any
) -> np.ndarray:
    """(B, T) loss in nats at each place; `options` are those of `network.run`."""
    torch = libraries.torch()
    device = next(iter(tensors.values())).device
    ids = torch.from_numpy(sequences.ids).to(device)
    with torch.no_grad():
        logits = run(shape, tensors, ids[:, :-1], **options)
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
    return losses.view(ids.shape[0], -1).cpu().numpy().astype(np.float64)


def _gap(logits: Any) -> Any:
    """(B, T) logit to key 0 less the mean to the other keys that a query sees, mean over heads."""
    torch = libraries.torch()
    length = logits.shape[-1]
    others = torch.ones(length, length, device=logits.device).tril()
    others[:, 0] = 0
    mean = (logits * others).sum(dim=-1) / others.sum(dim=-1).clamp(min=1)
    return (logits[..., 0] - mean).mean(dim=1)
