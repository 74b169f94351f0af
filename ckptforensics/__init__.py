"""Forensics on language-model checkpoints, from their weights alone.

`open_checkpoint` reads headers; `sign`, `find_layers`, `rollout` and `inspect` take its result (or
a path), `compare` takes several, and all return result documents. Names are imported on first use,
so that importing the package costs nothing.
"""

from __future__ import annotations

from ckptforensics.version import __version__

# Type checkers take the name for true; importing `typing` for it would take longer than all else.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ckptforensics.checkpoint import Checkpoint, open_checkpoint
    from ckptforensics.errors import CkptError
    from ckptforensics.findings import (
        Accumulated,
        Rollout,
        Scope,
        SignatureCache,
        accumulate,
        find_layers,
        fingerprint_distance,
        inspect,
        rollout,
    )
    from ckptforensics.findings.sign import sign
    from ckptforensics.lineage.compare import compare
    from ckptforensics.linear import Calibration, Fit
    from ckptforensics.quantization.diff import diff_quantized
    from ckptforensics.quantization.plan import plan_quantization
    from ckptforensics.quantization.rounding import rounded
    from ckptforensics.render import picture
    from ckptforensics.results import Signature, load_result
    from ckptforensics.runtime.experiments.ablate import ablate
    from ckptforensics.runtime.experiments.empirical import empirical
    from ckptforensics.runtime.experiments.paths import paths
    from ckptforensics.runtime.experiments.quantize import evaluate_quantization
    from ckptforensics.runtime.experiments.sinks import sinks
    from ckptforensics.runtime.experiments.trace import trace
    from ckptforensics.runtime.model import start
    from ckptforensics.runtime.texts import Text
    from ckptforensics.runtime.weights import Placement

__all__ = [
    "Accumulated",
    "Calibration",
    "Checkpoint",
    "CkptError",
    "Fit",
    "Placement",
    "Rollout",
    "Scope",
    "Signature",
    "SignatureCache",
    "Text",
    "__version__",
    "ablate",
    "accumulate",
    "compare",
    "diff_quantized",
    "empirical",
    "evaluate_quantization",
    "find_layers",
    "fingerprint_distance",
    "inspect",
    "load_result",
    "open_checkpoint",
    "paths",
    "picture",
    "plan_quantization",
    "rollout",
    "rounded",
    "sign",
    "sinks",
    "start",
    "trace",
]

_HOMES = {
    "Placement": "ckptforensics.runtime.weights",
    "Text": "ckptforensics.runtime.texts",
    "start": "ckptforensics.runtime.model",
    "trace": "ckptforensics.runtime.experiments.trace",
    "sinks": "ckptforensics.runtime.experiments.sinks",
    "paths": "ckptforensics.runtime.experiments.paths",
    "empirical": "ckptforensics.runtime.experiments.empirical",
    "ablate": "ckptforensics.runtime.experiments.ablate",
    "evaluate_quantization": "ckptforensics.runtime.experiments.quantize",
    "Accumulated": "ckptforensics.findings",
    "Calibration": "ckptforensics.linear",
    "Checkpoint": "ckptforensics.checkpoint",
    "CkptError": "ckptforensics.errors",
    "Fit": "ckptforensics.linear",
    "Rollout": "ckptforensics.findings",
    "Signature": "ckptforensics.results",
    "Scope": "ckptforensics.findings",
    "SignatureCache": "ckptforensics.findings",
    "accumulate": "ckptforensics.findings",
    "compare": "ckptforensics.lineage.compare",
    "find_layers": "ckptforensics.findings",
    "fingerprint_distance": "ckptforensics.findings",
    "inspect": "ckptforensics.findings",
    "load_result": "ckptforensics.results",
    "open_checkpoint": "ckptforensics.checkpoint",
    "picture": "ckptforensics.render",
    "diff_quantized": "ckptforensics.quantization.diff",
    "rounded": "ckptforensics.quantization.rounding",
    "plan_quantization": "ckptforensics.quantization.plan",
    "rollout": "ckptforensics.findings",
    "sign": "ckptforensics.findings",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names that the package offers, imported or not."""
    return sorted(__all__)
