"""One model of a comparison, read only as far as a test needs it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ckptforensics.architectures import Role, WeightRef
from ckptforensics.arrays import Floats, Ints
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.compute.bf16 import Bf16Matrix
from ckptforensics.compute.products import multiply
from ckptforensics.compute.threads import thread_count
from ckptforensics.errors import NotApplicable, NothingAnalysable
from ckptforensics.findings.cache.store import SignatureCache
from ckptforensics.findings.damage import with_damage
from ckptforensics.findings.model import model_record
from ckptforensics.findings.scope import Scope
from ckptforensics.findings.sign import sign
from ckptforensics.forward import embedding_name, fold_into, fold_norm, vocabulary_size
from ckptforensics.layers import Attention, Block, Ffn, Matrix, Norm, load_attention, load_block
from ckptforensics.progress import Progress
from ckptforensics.results import ModelRecord, Signature
from ckptforensics.tensors import matrix_shape
from ckptforensics.tokens import read_vocabulary

# Elements that are read between two rows rather than each row on its own, and those of a run.
_GAP, _RUN = 1 << 16, 1 << 22
# Stored bytes of a layer up to which several layers are looked at at once, each by one core.
_SMALL_LAYER = 64 << 20
# Stored bytes of a model from which on its matrices stay as they are stored, where that is
# possible: of a small one the compiled loops take longer to load than they spare.
_LARGE = 2 << 30
# Roles of the rows that name a hidden unit.
_NAMING: tuple[Role, ...] = ("gate", "up")


@dataclass(frozen=True)
class Units:
    """The hidden units of one FFN as they read the normalised stream: gains and factors folded in.

    What is left is what no rewriting of the weights changes, but for the residual basis, the order
    of the units and a factor between `up` and `down`.

    Attributes
    ----------
    gate : (ffn_width, hidden_size), None without a gate
    up : (ffn_width, hidden_size), the input rows
    down : (hidden_size, ffn_width)
    """

    gate: Floats | None
    up: Floats
    down: Floats

    @property
    def rows(self) -> Floats:
        """The rows that name a unit: the gate's, or the input rows without a gate."""
        return self.up if self.gate is None else self.gate


class Model:
    """One model of a comparison: its checkpoint, or a saved signature alone.

    Nothing is read before a test asks for it. Of blocks the last one is kept, of small ones as many
    as there are cores. Any number of threads may ask.

    Attributes
    ----------
    name : as it is shown
    checkpoint : None for a saved signature: tests that need weights are skipped
    bytes_read : stored bytes of the weights read so far, those of the signature not counted
    """

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint | None,
        *,
        signature: Signature | None = None,
    ) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.bytes_read = 0
        self._signature = signature
        self._blocks: dict[int, Block] = {}
        self._lock = threading.Lock()

    @property
    def weights(self) -> Checkpoint:
        """The checkpoint; NotApplicable for a saved signature."""
        if self.checkpoint is None:
            raise NotApplicable(f"{self.name} is a saved signature, without weights")
        return self.checkpoint

    @property
    def signature(self) -> Signature:
        """Given, or measured when it is first asked for; errors as `sign`."""
        return self.sign()

    def sign(
        self,
        cache: SignatureCache | None = None,
        progress: Progress | None = None,
        memory: int | None = None,
    ) -> Signature:
        """The signature; if it is not there yet, from the cache or measured; errors as `sign`.

        `memory` is that of a `Scope`.
        """
        if self._signature is None:
            scope = Scope(memory=memory)
            self._signature = sign(self.weights, cache=cache, progress=progress, scope=scope)
        return self._signature

    def take(self, signature: Signature) -> None:
        """Use a signature that was measured of these weights elsewhere."""
        self._signature = signature

    def record(
        self, *, digest: bool = False, look: bool = True, progress: Progress | None = None
    ) -> ModelRecord:
        """Which files the model is, and what looks damaged in them; errors as `sha256_of_file`.

        Parameters
        ----------
        digest : compute the SHA-256 of whole files
        look : look at weights too: at what was read so far and, of other matrices, at a few pages;
            else what was seen while the model was signed is all that is told
        progress : told of each file
        """
        signed = self.signature.document.model
        if self.checkpoint is None:
            return signed
        record = model_record(self.checkpoint, digest=digest, progress=progress)
        told = {"damage": signed.damage, "examined": signed.examined}
        if not look:
            return record.model_copy(update=told)
        record = with_damage(record, self.checkpoint)
        if signed.examined is None or record.examined is None:
            return record
        # A signature from the cache saw what this process did not read.
        known = {(d.tensor, d.what) for d in signed.damage}
        more = [d for d in record.damage if (d.tensor, d.what) not in known]
        examined = max((signed.examined, record.examined), key=lambda e: e.whole)
        told = {"damage": (*signed.damage, *more), "examined": examined}
        return record.model_copy(update=told)

    def count(self, nbytes: int) -> None:
        """Note that stored bytes of the weights were read."""
        with self._lock:
            self.bytes_read += nbytes

    @property
    def path(self) -> Path | None:
        """Where it lies, for errors."""
        return None if self.checkpoint is None else self.checkpoint.source.path

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Numbers, from 1, of the layers of which something is analysed."""
        if self.checkpoint is None:
            return tuple(row.layer for row in self.signature.document.layers)
        return self.checkpoint.architecture.analysed

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        if self.checkpoint is None:
            return self.signature.document.model.hidden_size
        return self.checkpoint.architecture.sizes.hidden_size

    def block(self, layer: int) -> Block:
        """Block `layer`, from 1; errors as `load_block`, NotApplicable
        where nothing of it is analysed."""
        block = self._blocks.get(layer)
        if block is None:
            with self._lock:  # before the next one is read
                for oldest in list(self._blocks)[: len(self._blocks) + 1 - self.at_once]:
                    del self._blocks[oldest]
            with _applicable():
                block = load_block(self.weights, layer, keep=self.large)
            plan = self.weights.architecture.layers[layer - 1]
            self._count({name for name, _ in plan.names()})
            with self._lock:
                self._blocks[layer] = block
        return block

    @cached_property
    def at_once(self) -> int:
        """Layers to look at at once: of small ones one a core, since a core has too little of one.

        Of a model that is not on this machine one, whose ranges are fetched together.
        """
        local = self.weights.source.remote is None
        small = self.stored_bytes <= _SMALL_LAYER * len(self.layers)
        return thread_count() if local and small else 1

    def ahead(self, beside: Mapping[int, Sequence[str]]) -> Iterator[int]:
        """All layers in order; the bytes of the next are read ahead while one is looked at.

        Parameters
        ----------
        beside : tensors of each layer that are read beside those of its block
        """
        checkpoint = self.weights
        local = checkpoint.source.remote is None
        for layer, following in zip(self.layers, (*self.layers[1:], None), strict=True):
            if local and following is not None:
                plan = checkpoint.architecture.layers[following - 1]
                names = {name for name, _ in plan.names()} | set(beside.get(following, ()))
                checkpoint.store.prefetch(sorted(names))
            yield layer

    def attention(self, layer: int) -> Attention:
        """The attention branch of a layer alone, which is not kept; errors as `block`."""
        with _applicable():
            found = load_attention(self.weights, layer)
        plan = self.weights.architecture.layers[layer - 1]
        self._count({name for name, role in plan.names() if role in ("value", "output")})
        return found

    def forget(self) -> None:
        """Give the memory of the block used last back."""
        self._blocks.clear()

    def ffns(self, layer: int) -> tuple[Units, ...]:
        """The folded units of a layer's FFN, or of each routed expert of it, in their order."""
        ffn = self.block(layer).ffn
        if isinstance(ffn, Ffn):
            return (_folded(ffn, ffn.norm),)
        return tuple(_folded(expert, ffn.norm) for expert in ffn.experts)

    def units(self, layer: int) -> Units:
        """The folded units of a layer's FFN; NotApplicable for a layer of experts."""
        return _folded(self._one_ffn(layer), self.block(layer).ffn.norm)

    def _one_ffn(self, layer: int) -> Ffn:
        ffn = self.block(layer).ffn
        if isinstance(ffn, Ffn):
            return ffn
        if len(ffn.experts) > 1:
            raise NotApplicable(f"layer {layer} of {self.name} has {len(ffn.experts)} experts")
        return ffn.experts[0]

    def rows(self, layer: int, start: int, stop: int) -> tuple[Floats, Floats]:
        """Units `start` to `stop`: rows that name them (gate's, or input rows), and input rows.

        Both are (stop - start, hidden_size), folded as in `Units` (without a gate they are the same
        array). Only these rows are read where the file has them as rows. NotApplicable for a
        layer of experts.
        """
        first, second, norm = self._naming(layer, slice(start, stop))
        up = fold_norm(second, norm)
        return (up if first is second else fold_norm(first, norm)), up

    def responses(self, layer: int, states: Floats, run: slice) -> tuple[Floats, Floats]:
        """What the `rows` of some units answer to states, each (units, states).

        Parameters
        ----------
        states : (states, hidden_size)
        """
        first, second, norm = self._naming(layer, run)
        columns = fold_into(states, norm)
        up = multiply(second, columns)
        return (up if first is second else multiply(first, columns)), up

    def _naming(self, layer: int, run: slice) -> tuple[Matrix, Matrix, Norm | None]:
        """The `rows` of units before the norm is folded in, and the norm."""
        architecture = self.weights.architecture
        refs = architecture.layers[layer - 1].refs
        as_rows = "up" in refs and all(plain(refs[role]) for role in _NAMING if role in refs)
        if layer in self._blocks or not as_rows:
            ffn = self._one_ffn(layer)
            found = [map_.matrix for map_ in (ffn.gate, ffn.up) if map_ is not None]
            found = [m if run.stop - run.start == len(m) else m[run] for m in found]
            return found[0], found[-1], self.block(layer).ffn.norm
        roles = [role for role in _NAMING if role in refs]
        found = [self.stored_rows(refs[role].weight, run.start, run.stop) for role in roles]
        if "gate" in refs and (factor := np.float32(architecture.gate_scale)) != 1:
            found[0] = found[0][:] * factor
        return found[0], found[-1], self._ffn_norm(layer)

    def kept(self, name: str) -> Bf16Matrix | None:
        """A tensor of a large model as a matrix that stays as it is stored, where that can be.

        Raises
        ------
        NotFinite
            if one of its numbers is NaN or infinite.
        """
        store = self.weights.store
        rows = matrix_shape(store.info(name))[1]
        matrix = store.kept_rows(name, 0, rows) if self.large else None
        if matrix is not None:
            self._count([name])
        return matrix

    def stored_rows(self, name: str, start: int, stop: int) -> Matrix:
        """Rows of a tensor, of a large model as they are stored where that can be.

        Raises
        ------
        NotFinite
            if one of their numbers is NaN or infinite.
        TensorError
            if they cannot be decoded.
        """
        store = self.weights.store
        info = store.info(name)
        self.count(info.nbytes * (stop - start) // max(1, matrix_shape(info)[1]))
        kept = store.kept_rows(name, start, stop) if self.large else None
        return store.read_rows(name, start, stop) if kept is None else kept

    def width(self, layer: int) -> int:
        """Number of hidden units of a layer's FFN (of one expert's)."""
        plan = self.weights.architecture.layers[layer - 1]
        ref = plan.refs.get("up")
        if ref is not None and plain(ref):
            return self.weights.store.info(ref.weight).shape[0]
        return self.ffns(layer)[0].up.shape[0]

    def embedding(self, tokens: Sequence[int] | Ints) -> Floats:
        """Stored embedding rows of tokens, (len(tokens), columns of the embedding matrix).

        Raises
        ------
        NotApplicable
            if the files hold no token embeddings.
        """
        checkpoint = self.weights
        with _applicable():
            name = embedding_name(checkpoint)
        info = checkpoint.store.info(name)
        ids = np.asarray(tokens, np.int64)
        order = np.argsort(ids, kind="stable")
        remote = checkpoint.source.remote is not None
        runs = list(_runs(ids[order], info.shape[-1], 1 if remote else _GAP))
        bounds = [(int(run[0]), int(run[-1]) + 1) for run in runs]
        checkpoint.store.prefetch_rows(name, bounds)
        out = np.empty((ids.size, info.shape[-1]), np.float32)
        at = 0
        for run, (start, stop) in zip(runs, bounds, strict=True):
            out[order[at : at + run.size]] = checkpoint.store.read_rows(name, start, stop)[
                run - start
            ]
            at += run.size
            self.count(info.nbytes * (stop - start) // info.shape[0])
        return out

    @cached_property
    def large(self) -> bool:
        """Whether matrices stay as they are stored, where that is possible."""
        return self.stored_bytes >= _LARGE

    @property
    def stored_bytes(self) -> int:
        """Of all tensors as they are stored."""
        return sum(info.nbytes for info in self.weights.store.tensors.values())

    @property
    def vocabulary_size(self) -> int:
        """Number of token embeddings; NotApplicable if the files hold none."""
        with _applicable():
            return vocabulary_size(self.weights)

    @cached_property
    def vocabulary(self) -> Mapping[str, int] | None:
        """Token strings to ids, None where no tokenizer lies beside the weights."""
        return read_vocabulary(self.weights)

    def gains(self) -> Floats | None:
        """(2 x layers, hidden_size) gains of the norms before attention and FFN of every layer.

        None where a block lacks one, or a norm has no gain of its own.
        """
        checkpoint = self.weights
        rows = []
        for layer in self.layers:
            refs = checkpoint.architecture.layers[layer - 1].refs
            for role in ("attention_norm", "ffn_norm"):
                if role not in refs:
                    return None
                ref = refs[role]
                rows.append(checkpoint.store.read(ref.weight).reshape(-1))
                self._count([ref.weight])
        return np.stack(rows) if rows else None

    def _ffn_norm(self, layer: int) -> Norm | None:
        """The norm before a layer's FFN, without reading its matrices."""
        architecture, store = self.weights.architecture, self.weights.store
        ref = architecture.layers[layer - 1].refs.get("ffn_norm")
        if architecture.norm_position == "after":
            return None
        spec = architecture.family.norm
        if ref is None:
            if spec.affine:
                return None
            return Norm(spec.kind, np.ones(self.hidden_size, np.float32), None, architecture.eps)
        gain = store.read(ref.weight).reshape(-1) + np.float32(architecture.gain_offset)
        return Norm(spec.kind, gain, None, architecture.eps)

    def _count(self, names: Sequence[str] | set[str]) -> None:
        self.count(sum(self.weights.store.info(name).nbytes for name in names))


@contextmanager
def _applicable() -> Iterator[None]:
    """What a model does not have is the reason why a criterion does not apply to it."""
    try:
        yield
    except NothingAnalysable as problem:
        raise NotApplicable(problem.message) from None


def plain(ref: WeightRef) -> bool:
    """Whether rows of the role are rows of the stored tensor."""
    return (
        not ref.transposed
        and ref.ranges is None
        and ref.step == 1
        and ref.expert is None
        and not ref.split_heads
        and ref.input_scale is None
    )


def _runs(ids: Ints, columns: int, gap: int) -> Iterator[Ints]:
    """Sorted rows in runs that are read at once: a few rows between are read too, which is faster.

    Parameters
    ----------
    gap : elements between two rows of a run, at most
    """
    if not ids.size:
        return
    longest = max(1, _RUN // columns)
    ends = np.flatnonzero(np.diff(ids) > max(1, gap // columns)) + 1
    for run in np.split(ids, ends):
        yield from np.split(run, np.flatnonzero(np.diff((run - run[0]) // longest)) + 1)


def _folded(ffn: Ffn, norm: Norm | None) -> Units:
    gate = None if ffn.gate is None else fold_norm(ffn.gate.matrix, norm)
    return Units(gate, fold_norm(ffn.up.matrix, norm), ffn.down.weight)
