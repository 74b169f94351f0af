"""What the measurements mean: signature, explosion and decay layers, norms, inspection."""

from ckptforensics.findings.accumulated import Accumulated, accumulate
from ckptforensics.findings.cache.store import SignatureCache, cache_info
from ckptforensics.findings.explosion import find_layers
from ckptforensics.findings.families import list_families
from ckptforensics.findings.fingerprint import fingerprint, fingerprint_distance
from ckptforensics.findings.inspection import inspect
from ckptforensics.findings.norms import Rollout, rollout
from ckptforensics.findings.scope import Scope, layer_numbers, needed_memory
from ckptforensics.findings.sign import sign

__all__ = [
    "Accumulated",
    "Rollout",
    "Scope",
    "SignatureCache",
    "accumulate",
    "cache_info",
    "find_layers",
    "fingerprint",
    "fingerprint_distance",
    "inspect",
    "layer_numbers",
    "list_families",
    "needed_memory",
    "rollout",
    "sign",
]
