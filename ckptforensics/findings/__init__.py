"""What the measurements mean: signature, explosion and decay layers, norms, inspection."""

from ckptforensics.findings.accumulated import Accumulated, accumulate
from ckptforensics.findings.families import list_families
from ckptforensics.findings.fingerprint import fingerprint, fingerprint_distance
from ckptforensics.findings.inspection import inspect
from ckptforensics.findings.norms import Rollout, rollout
from ckptforensics.findings.report import find_layers, sign

__all__ = [
    "Accumulated",
    "Rollout",
    "accumulate",
    "find_layers",
    "fingerprint",
    "fingerprint_distance",
    "inspect",
    "list_families",
    "rollout",
    "sign",
]
