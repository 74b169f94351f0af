"""The model that is analysed: opened, and as the record in its result."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

from ckptforensics.checkpoint import Checkpoint, open_checkpoint
from ckptforensics.errors import CkptError, NothingAnalysable
from ckptforensics.progress import Progress, running
from ckptforensics.results import FileRecord, ModelRecord, load_document, saved_kind
from ckptforensics.sources import sha256_of_file


def opened(model: Checkpoint | str | Path) -> Checkpoint:
    """The checkpoint itself, or opened; errors as `open_checkpoint`."""
    if isinstance(model, Checkpoint):
        return model
    refuse_result(model)
    return open_checkpoint(model)


def refuse_result(model: str | Path) -> None:
    """NothingAnalysable if the file is a saved result and no checkpoint."""
    path = Path(model)
    kind = saved_kind(path)
    if path.suffix == ".json" and not path.name.endswith(".index.json") and path.is_file():
        with suppress(CkptError):
            kind = load_document(path).kind
    if kind is not None:
        also = ", and 'ckpt compare' takes it as a model" if kind == "signature" else ""
        raise NothingAnalysable(
            f"this is a saved result ({kind}) and no checkpoint",
            path=path,
            hint=f"'ckpt show {shlex.quote(str(path))}' shows it{also}",
        )


def model_record(
    checkpoint: Checkpoint, *, digest: bool = False, progress: Progress | None = None
) -> ModelRecord:
    """Describe the checkpoint and its files.

    Parameters
    ----------
    digest : compute the SHA-256 of whole files, which costs more than signing; without it those of
        files on the Hub are given as the Hub states them, and no others: a name is no proof
    """
    source = checkpoint.source
    files = []
    count = len(checkpoint.store.containers)
    with running(progress if digest else None, "digests", count) as step:
        for container in checkpoint.store.containers:
            sha256 = source.sha256.get(container.path)
            if digest:
                if sha256 is None and source.remote is not None:
                    source.remote.fetch({container.path: [(0, container.size)]})
                sha256 = sha256 or sha256_of_file(container.path)
                require_unchanged(checkpoint)
                step(container.path.name)
            files.append(
                FileRecord(
                    name=container.path.name,
                    bytes=container.size,
                    header_sha256=container.header_sha256,
                    sha256=sha256,
                )
            )
    architecture = checkpoint.architecture
    return ModelRecord(
        path=str(source.path),
        family=architecture.family.name,
        family_source=architecture.source,
        hidden_size=architecture.sizes.hidden_size,
        num_layers=architecture.sizes.num_layers,
        files=tuple(files),
        commit=source.commit,
        notes=(*source.notes, *architecture.notes),
        base=None if checkpoint.source.base is None else str(checkpoint.source.base),
    )


def require_unchanged(checkpoint: Checkpoint) -> None:
    """FormatError if a file was written to since it was opened: its digest is of something else."""
    if checkpoint.source.remote is None:  # what is fetched is written to the files
        for container in checkpoint.store.containers:
            container.require_unchanged()
