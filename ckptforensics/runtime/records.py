"""The running model and its text as records of a document."""

from __future__ import annotations

from collections.abc import Iterable

from ckptforensics.errors import CkptError
from ckptforensics.results.running import RunningRecord
from ckptforensics.runtime import libraries
from ckptforensics.runtime.model import Runtime


def running_record(runtime: Runtime) -> RunningRecord:
    """What runs the model."""
    parameter, device = next(runtime.model.parameters()), runtime.model.device
    return RunningRecord(
        model_class=type(runtime.model).__name__,
        transformers=libraries.transformers().__version__,
        torch=libraries.torch().__version__,
        device=str(device) if device.type != "meta" else "cpu, offloaded",
        dtype=str(parameter.dtype).removeprefix("torch."),
    )


def token_texts(runtime: Runtime, tokens: Iterable[int]) -> dict[int, str | None]:
    """Tokens to their texts; None where the checkpoint has no tokenizer."""
    wanted = set(tokens)
    try:
        tokenizer = runtime.tokenizer
    except CkptError:
        return dict.fromkeys(wanted)
    return {token: tokenizer.text(token) for token in wanted}
