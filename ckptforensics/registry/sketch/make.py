"""Make the sketch of a model from a few of its tensors."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from ckptforensics.arrays import Floats, Ints
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.compute.threads import all_cores
from ckptforensics.errors import NotApplicable, NotFinite, NothingAnalysable
from ckptforensics.findings.model import model_record
from ckptforensics.forward import embedding_name, vocabulary_size
from ckptforensics.layers import Attention, load_values, values_bytes
from ckptforensics.lineage.correspondence.heads import head_spectra
from ckptforensics.progress import Progress, running
from ckptforensics.registry.sketch import tokens as of_tokens
from ckptforensics.registry.sketch.attention import shape, size, those_that_write
from ckptforensics.registry.sketch.record import (
    BY,
    By,
    Tokens,
    attention_record,
    heads_record,
    tokens_record,
)
from ckptforensics.registry.sketch.spectra import KINDS, OF, at_ranks, most_distinctive
from ckptforensics.results.records import Skipped
from ckptforensics.results.sketch import (
    SketchDocument,
    Sketched,
    SketchedAttention,
    SketchedHeads,
)
from ckptforensics.tokens import read_vocabulary
from ckptforensics.version import __version__

# Rows that lie closer in the file are read, and asked for, together.
_GAP_BYTES = 1 << 18


@all_cores()
def sketch(
    checkpoint: Checkpoint,
    *,
    heads: bool = True,
    digest: bool = False,
    progress: Progress | None = None,
) -> SketchDocument:
    """What a model is found by: how alike it sees some tokens, and spectra of its attention.

    Parameters
    ----------
    heads : whether attention is looked at, in each head and in all together, which takes most of
        the bytes
    digest : compute the SHA-256 of whole files
    progress : told of each layer

    Raises
    ------
    NothingAnalysable
        if the model shows neither tokens nor heads.
    CkptError
        if the files cannot be read.
    """
    began = time.monotonic()
    skipped: list[Skipped] = []
    read = _Read(checkpoint)
    found = [tokens_record(by, tokens) for by, tokens in _tokens(checkpoint, read, skipped)]
    of_heads, of_layers = None, None
    if heads:
        of_heads, of_layers = _attention(checkpoint, read, skipped, progress)
    else:
        skipped += [Skipped(what=of, reason="not asked for") for of in OF]
    if not found and of_heads is None:
        raise NothingAnalysable(
            "the model has neither token embeddings nor heads to sketch",
            path=checkpoint.source.path,
        )
    return SketchDocument(
        tool_version=__version__,
        model=model_record(checkpoint, digest=digest, progress=progress),
        found=Sketched(tokens=tuple(found), heads=of_heads, attention=of_layers),
        skipped=tuple(skipped),
        bytes_read=read.bytes,
        requests=None if checkpoint.source.remote is None else checkpoint.source.remote.requests,
        seconds=time.monotonic() - began,
    )


class _Read:
    """Reads what a sketch needs, and counts it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.bytes = 0

    def embeddings(self, ids: Ints) -> Floats:
        """Stored embedding rows; rows that are close are read with what lies between them."""
        store = self._checkpoint.store
        name = embedding_name(self._checkpoint)
        info = store.info(name)
        row_bytes = max(1, info.nbytes // info.shape[0])
        order = np.argsort(ids, kind="stable")
        apart = np.flatnonzero(np.diff(ids[order]) * row_bytes > _GAP_BYTES) + 1
        runs = np.split(ids[order], apart)
        bounds = [(int(run[0]), int(run[-1]) + 1) for run in runs]
        store.prefetch_rows(name, bounds)
        self.bytes += sum(stop - start for start, stop in bounds) * row_bytes
        rows = [
            store.read_rows(name, start, stop)[run - start]
            for run, (start, stop) in zip(runs, bounds, strict=True)
        ]
        found = np.empty((len(ids), info.shape[-1]), np.float32)
        found[order] = np.concatenate(rows)
        if not np.isfinite(found).all():
            raise NotFinite("an embedding is not finite", path=info.path, tensor=name)
        return found

    def attention(self, layer: int) -> Attention:
        """A layer's value and output maps."""
        self.bytes += values_bytes(self._checkpoint, layer)
        return load_values(self._checkpoint, layer)


def _tokens(
    checkpoint: Checkpoint, read: _Read, skipped: list[Skipped]
) -> Iterator[tuple[By, Tokens]]:
    """What rests on tokens, by each way to name them; what cannot be had is skipped."""
    named = {}
    for by in BY:
        try:
            named[by] = _named(checkpoint, by)
        except (NotApplicable, NothingAnalysable) as problem:
            skipped.append(Skipped(what=f"tokens by {by}", reason=problem.message))
    if not named:
        return
    # In one go: a server is asked for the rows of both together.
    rows = read.embeddings(np.concatenate([ids for _, ids in named.values()]))
    parts = np.split(rows, np.cumsum([len(ids) for _, ids in named.values()])[:-1])
    for (by, (names, _)), part in zip(named.items(), parts, strict=True):
        try:
            yield by, Tokens(names, of_tokens.likeness(part))
        except NotApplicable as problem:
            skipped.append(Skipped(what=f"tokens by {by}", reason=problem.message))


def _named(checkpoint: Checkpoint, by: By) -> tuple[Ints, Ints]:
    """Digests and ids of the tokens; NotApplicable where there are too few."""
    size = vocabulary_size(checkpoint)
    if by == "ids":
        names, ids = of_tokens.named_by_ids(size)
    else:
        vocabulary = read_vocabulary(checkpoint)
        if vocabulary is None:
            raise NotApplicable("no vocabulary that can be read lies beside the weights")
        names, ids = of_tokens.named_by_strings(vocabulary, size)
    if len(ids) < of_tokens.LEAST:
        raise NotApplicable(f"{len(ids)} tokens are too few")
    return names, ids


def _attention(
    checkpoint: Checkpoint, read: _Read, skipped: list[Skipped], progress: Progress | None
) -> tuple[SketchedHeads | None, SketchedAttention | None]:
    """The most distinctive heads and the layers that write most; what cannot be read is skipped."""
    architecture = checkpoint.architecture
    layers = [
        layer for layer in architecture.analysed if "value" in architecture.layers[layer - 1].refs
    ]
    if not layers:
        why = "the model has no attention that is analysed"
        skipped += [Skipped(what=of, reason=why) for of in OF]
        return None, None
    of_heads, sizes = [], {}
    with running(progress, "heads", len(layers)) as step:
        for layer in layers:
            attention = read.attention(layer)
            spectra = head_spectra(attention)
            if len(spectra):
                of_heads.append(at_ranks(spectra))
                sizes[layer] = size(attention)
            step(f"layer {layer}")
    chosen = those_that_write(sizes, KINDS["attention"].most)
    with running(progress, "attention", len(chosen)) as step:
        of_layers = []
        for layer in chosen:
            of_layers.append(shape(read.attention(layer)))
            step(f"layer {layer}")
    heads, whole = None, None
    if of_heads:
        every = np.concatenate(of_heads)
        heads = heads_record(most_distinctive(every), len(every))
    else:
        skipped.append(Skipped(what="heads", reason="no head writes anything"))
    if kept := [row for row in of_layers if row is not None]:
        whole = attention_record(np.stack(kept), len(layers))
    else:
        why = "singular values of whole layers are too few, or cannot be told apart"
        skipped.append(Skipped(what="attention", reason=why))
    return heads, whole
