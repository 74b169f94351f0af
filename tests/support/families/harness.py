"""Each family against its own implementation in transformers, on tiny random models.

A `Case` names a transformers configuration; the harness builds the model with random weights
(norm gains and biases too, so that nothing hides behind ones and zeros), saves it with
`save_pretrained`, runs single tokens through it with a hook on every block, and compares with the
rollout of the saved files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.support.models import name_tokens_within

State = dict[str, torch.Tensor]
OnDisk = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One row of the family test.

    Attributes
    ----------
    name : test id, unique; several cases may show one family in different configurations
    family : name of the family's TOML file
    config : makes the transformers configuration (2 to 4 layers, odd sizes, grouped heads)
    model : name of the transformers class to build
    blocks : attribute path from the model to its list of blocks
    vocabulary : token ids are drawn below this
    tolerance : relative to each hidden state's norm; any other value than 1e-5 says why
    reason : why another tolerance
    gains_near : mean of the random norm gains (0 for families that store gain - 1)
    extra_inputs : further arguments of the model's forward
    build : makes the model from the configuration, where transformers has no implementation
    on_disk : changes the saved folder to the names of the published files, where transformers
        writes others
    """

    name: str
    family: str
    config: Callable[[], Any]
    model: str = "AutoModelForCausalLM"
    blocks: str = "model.layers"
    vocabulary: int = 61
    tolerance: float = 1e-5
    reason: str = ""
    gains_near: float = 1.0
    extra_inputs: dict[str, Any] = field(default_factory=dict)
    build: Callable[[Any], torch.nn.Module] | None = None
    on_disk: OnDisk | None = None


def build_model(case: Case) -> torch.nn.Module:
    """The transformers model with reproducible random weights, in float32 and evaluation mode."""
    import transformers

    torch.manual_seed(20260101)
    config = case.config()
    model_class = getattr(transformers, case.model)
    make = model_class.from_config if case.model.startswith("Auto") else model_class
    model = (case.build or make)(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 and "bias" not in name.rsplit(".", 1)[-1]:
                parameter.copy_(case.gains_near + 0.3 * torch.randn_like(parameter))
            elif parameter.ndim < 2:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.2 * torch.randn_like(buffer))
    return model


def save_model(model: torch.nn.Module, folder: Path, case: Case) -> Path:
    """Write the model as `save_pretrained` does, or as published checkpoints of the case are."""
    name_tokens_within(model)
    model.save_pretrained(folder)
    if case.on_disk is not None:
        case.on_disk(folder)
    return folder


def published(change: Callable[[State, dict[str, Any]], tuple[State, dict[str, Any]]]) -> OnDisk:
    """For `on_disk`: change tensors and configuration together."""

    def rewrite(folder: Path) -> None:
        weights, settings = folder / "model.safetensors", folder / "config.json"
        tensors, config = change(load_file(weights), json.loads(settings.read_text()))
        # Copies: the tensors read share the file that is written.
        copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(copies, weights, metadata={"format": "pt"})
        settings.write_text(json.dumps(config))

    return rewrite


def run_one_token(model: torch.nn.Module, case: Case) -> None:
    """Run a token alone through the model, without a cache that would join it to others."""
    model.config.get_text_config().use_cache = False
    model(input_ids=torch.tensor([[7]]), **case.extra_inputs)


def hidden_states(model: torch.nn.Module, case: Case, tokens: list[int]) -> np.ndarray:
    """Output of every block for each token alone, (tokens, blocks, hidden_size)."""
    outputs: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple | list) else output).detach())

    blocks = attrgetter(case.blocks)(model)
    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor(tokens)[:, None], **case.extra_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    states = torch.stack([o.reshape(len(tokens), -1) for o in outputs], dim=1)
    return states.numpy().astype(np.float64)


def rollout_states(folder: Path, tokens: list[int]) -> np.ndarray:
    """Hidden states of our rollout, (tokens, layers, hidden_size)."""
    import ckptforensics

    states = ckptforensics.rollout(folder, tokens=tokens, states=True).states
    assert states is not None
    return states.astype(np.float64)


def relative_errors(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Norm of the difference over the norm, for each token and block."""
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs, axis=2) / np.linalg.norm(theirs, axis=2)
