"""The record of what was analysed."""

from __future__ import annotations

from ckptforensics.checkpoint import Checkpoint
from ckptforensics.progress import Progress, Silent
from ckptforensics.results import FileRecord, ModelRecord
from ckptforensics.sources import known_sha256, sha256_of_file


def model_record(
    checkpoint: Checkpoint, *, digest: bool = False, progress: Progress | None = None
) -> ModelRecord:
    """Describe the checkpoint and its files.

    Parameters
    ----------
    digest : compute the SHA-256 of whole files, which costs more than signing; without it they
        are given only where the Hugging Face cache knows them
    """
    progress = progress or Silent()
    files = []
    if digest:
        progress.start("digests", len(checkpoint.store.containers))
    try:
        for container in checkpoint.store.containers:
            sha256 = known_sha256(container.path)
            if digest:
                sha256 = sha256 or sha256_of_file(container.path)
                progress.step(container.path.name)
            files.append(
                FileRecord(
                    name=container.path.name,
                    bytes=container.size,
                    header_sha256=container.header_sha256,
                    sha256=sha256,
                )
            )
    finally:
        if digest:
            progress.finish()
    architecture = checkpoint.architecture
    return ModelRecord(
        path=str(checkpoint.source.path),
        family=architecture.family.name,
        family_source=architecture.source,
        hidden_size=architecture.sizes.hidden_size,
        num_layers=architecture.sizes.num_layers,
        files=tuple(files),
        commit=checkpoint.source.commit,
        notes=architecture.notes,
    )
