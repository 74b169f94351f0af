"""What a checkpoint is made of, from its headers and a look for damage."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ckptforensics.checkpoint import Checkpoint
from ckptforensics.findings.damage import weight_bytes, with_damage
from ckptforensics.findings.model import model_record, opened
from ckptforensics.findings.skipped import skipped_layers
from ckptforensics.progress import Progress
from ckptforensics.results import InspectDocument, TensorRecord
from ckptforensics.tensors import TensorInfo
from ckptforensics.tensors.containers.gguf import GgufArray
from ckptforensics.version import __version__

# Up to this many bytes of weights all of them are looked at for damage, else a few pages of each.
_WHOLE_BYTES = 1 << 29
# Characters of a header's value that are kept.
_LONGEST_VALUE = 200


def inspect(
    model: Checkpoint | str | Path, *, digest: bool = False, progress: Progress | None = None
) -> InspectDocument:
    """Describe a checkpoint: family, sizes, and each tensor's role or why it is not read.

    Parameters
    ----------
    model : an opened checkpoint or what `open_checkpoint` takes
    digest : also compute the SHA-256 of whole files, and look at all weights for damage, which is
        done of 512 MiB without it; of larger models a few pages of each matrix are looked at

    Raises
    ------
    CkptError
        if the checkpoint cannot be opened; see `open_checkpoint`.
    """
    checkpoint = opened(model)
    architecture, store = checkpoint.architecture, checkpoint.store
    used, unused = architecture.used, architecture.unused
    records = []
    for name, info in store.tensors.items():
        use = {"role": used.get(name), "skipped": unused.get(name)}
        records.append(_record(info, use))
        # A quantized weight is followed by what is stored of it.
        if (parts := store.parts(name)) != (info,):
            records += [_record(part, {**use, "part_of": name}) for part in parts]
    for name, reason in store.aside.items():
        records.append(_record(store.parts(name)[0], {"role": None, "skipped": reason}))
    sizes = architecture.sizes
    record = with_damage(
        model_record(checkpoint, digest=digest, progress=progress),
        checkpoint,
        whole=digest or weight_bytes(checkpoint) <= _WHOLE_BYTES,
        progress=progress,
    )
    return InspectDocument(
        tool_version=__version__,
        model=record,
        description=architecture.family.description,
        residual=architecture.residual,
        norm=architecture.family.norm.kind,
        epsilon=architecture.eps,
        activation=architecture.activation,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        ffn_width=_ffn_width(checkpoint),
        num_experts=max((len(plan.experts) for plan in architecture.layers), default=0) or None,
        vocabulary_size=(
            None
            if architecture.embedding is None
            else store.info(architecture.embedding.tokens).shape[0]
        ),
        bos_token_id=architecture.bos_token_id,
        parameters=sum(math.prod(info.shape) for info in store.tensors.values()),
        parameters_used=sum(math.prod(store.info(name).shape) for name in used),
        tensors=tuple(records),
        metadata={key: _shown(value) for key, value in store.metadata.items()},
        skipped=skipped_layers(architecture),
    )


def _shown(value: Any) -> str | int | float | bool:
    """A value of a header as a result holds it."""
    if isinstance(value, GgufArray):
        return f"list of {value.length:,}"
    if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = str(value)
    if len(text) > _LONGEST_VALUE:
        return f"{text[:_LONGEST_VALUE]}... ({len(text):,} characters)"
    return text


def _record(info: TensorInfo, use: dict[str, str | None]) -> TensorRecord:
    return TensorRecord(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        bytes=info.nbytes,
        file=info.path.name,
        role=use["role"],
        skipped=use["skipped"],
        part_of=use.get("part_of"),
    )


def _ffn_width(checkpoint: Checkpoint) -> int | None:
    """Hidden units of the first FFN that is analysed, or of one of its experts."""
    architecture = checkpoint.architecture
    if not architecture.analysed:
        return None
    plan = architecture.layers[architecture.analysed[0] - 1]
    down = plan.experts[0]["expert_down"] if plan.experts else plan.refs["down"]
    shape = checkpoint.store.info(down.weight).shape
    return shape[-2] if down.transposed else shape[-1]
