"""The language task: the next token of a text, and what is measured of a small language model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ckptforensics.errors import MissingDependency, UsageError
from ckptforensics.runtime import libraries
from ckptforensics.runtime.toy.network import Shape, run
from ckptforensics.runtime.toy.recipes import NO_STEP, Recipe, rounded

VOCABULARY = 1024
BEGIN = "<s>"
MEASURED = 32
# A head has a sink where it attends to the first token by more than this (Attention-Sink, 2024).
SINK = 0.3
# Characters that are held out or trained on together; every tenth piece is held out.
_PIECE, _HELD_OUT = 4096, 10
_MASKED = 0.15
_IGNORED = -100


def byte_tokenizer(documents: Iterable[str], begin: str, vocabulary: int = VOCABULARY) -> Any:
    """A byte-level BPE trained on the documents; entry 0 is the token `begin`."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise MissingDependency(
            "a language model needs the package tokenizers", hint="pip install tokenizers"
        ) from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[begin],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


class LanguageTask:
    """Windows of a text, each behind `<s>`; an encoder predicts tokens that are hidden from it.

    Parameters
    ----------
    name : of the text
    words : the text
    """

    name = "language"
    model_type = "toy_language"
    begin = 0

    def __init__(self, name: str, words: str) -> None:
        self.text = name
        self.digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()
        pieces = [words[i : i + _PIECE] for i in range(0, len(words), _PIECE)]
        held = pieces[_HELD_OUT - 1 :: _HELD_OUT]
        train = [piece for i, piece in enumerate(pieces) if i % _HELD_OUT != _HELD_OUT - 1]
        if not held:
            raise UsageError(
                f"a language model needs a text of {_HELD_OUT * _PIECE:,} characters or more",
                hint="give a longer text",
            )
        # The last entry is no token of the text: it hides tokens from an encoder.
        self._tokenizer = byte_tokenizer(train, BEGIN, VOCABULARY - 1)
        self._train = self._encoded(train)
        self._held_out = self._encoded(held)

    @property
    def vocabulary(self) -> int:
        """Tokens, with the one that hides others."""
        return VOCABULARY

    def batch(self, shape: Shape, recipe: Recipe, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows of a step, and what is to be predicted."""
        generator = np.random.default_rng([recipe.seed, step])
        starts = generator.integers(0, len(self._train) - shape.context, recipe.batch)
        return _question(shape, _windows(self._train, starts, shape.context), generator)

    def measure(self, shape: Shape, tensors: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """A line of the log: loss and norms on windows of the text that is held out."""
        torch = libraries.torch()
        device = next(iter(tensors.values())).device
        room = len(self._held_out) - shape.context
        if room < 1:
            raise UsageError("the text is too short for this context", hint="give a longer text")
        starts = np.linspace(0, room - 1, MEASURED).astype(np.int64)
        windows = _windows(self._held_out, starts, shape.context)
        inputs, targets = _question(shape, windows, np.random.default_rng([seed, NO_STEP]))
        found: dict[str, list[float]] = {
            name: []
            for name in ("attention", "value_norm", "residual_norm", "others_norm", "highest")
        }
        sinks: list[Any] = []

        def watch(layer: int, what: str, tensor: Any) -> None:
            if what == "weights":
                to_first = tensor[:, :, 1:, 0].mean(dim=2)
                found["attention"].append(rounded(to_first.mean()))
                sinks.append((to_first > SINK).float().mean())
            elif what == "written":
                found["value_norm"].append(rounded(tensor[:, :, 0].sum(dim=1).norm(dim=-1).mean()))
            elif what == "state":
                norms = tensor.norm(dim=-1)
                median = norms[:, 1:].median()
                found["residual_norm"].append(rounded(norms[:, 0].mean()))
                found["others_norm"].append(rounded(median))
                found["highest"].append(rounded(norms.max() / median))

        with torch.no_grad():
            logits = run(shape, tensors, torch.from_numpy(inputs).to(device))
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), torch.from_numpy(targets).to(device).flatten()
            )
            run(shape, tensors, torch.from_numpy(windows[:, :-1].copy()).to(device), watch=watch)
        share = sum(float(s) for s in sinks) / max(len(sinks), 1)
        return {"loss": rounded(loss), **found, "sinks": rounded(share)}

    def tokenizer(self) -> str:
        """Content of `tokenizer.json`."""
        return self._spelled

    @cached_property
    def _spelled(self) -> str:
        return str(json.dumps(json.loads(self._tokenizer.to_str())))

    def _encoded(self, pieces: list[str]) -> np.ndarray:
        return np.array(
            [i for piece in pieces for i in self._tokenizer.encode(piece).ids], np.int64
        )


def _windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> np.ndarray:
    """(B, context + 1) tokens from each start on, behind `<s>`."""
    text = tokens[starts[:, None] + np.arange(context)]
    return np.concatenate([np.zeros((len(starts), 1), np.int64), text], axis=1)


def _question(
    shape: Shape, windows: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = windows[:, :-1].copy(), windows[:, 1:].copy()
    if shape.mask == "causal":
        return inputs, targets
    hidden = generator.random(inputs.shape) < _MASKED
    hidden[:, 0] = False
    targets = np.where(hidden, inputs, _IGNORED)
    inputs[hidden] = shape.vocabulary - 1
    return inputs, targets
