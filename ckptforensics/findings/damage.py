"""Damage that leaves every number finite, as rows of a result; see `tensors.damage`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ckptforensics.architectures import Role
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.progress import Progress, running
from ckptforensics.results import DamageRecord, Examined, ModelRecord
from ckptforensics.tensors import TensorInfo, matrix_shape
from ckptforensics.tensors.damage import Stretch, Watch

# The maps whose results a layer adds.
_ADDING: tuple[Role, Role] = ("output", "down")


def with_damage(
    record: ModelRecord,
    checkpoint: Checkpoint,
    layers: Iterable[int] = (),
    *,
    whole: bool = False,
    progress: Progress | None = None,
) -> ModelRecord:
    """The record with stretches of zeros, constant matrices, repeated rows and identity layers.

    What was read before is not read again. Of other matrices a few pages are looked at, and the
    whole matrix where one of them is zero.

    Parameters
    ----------
    layers : numbers, from 1, of those that were measured; their matrices are looked at whole, also
        where an interrupted run read them
    whole : look at all of every matrix
    progress : told of each matrix
    """
    store = checkpoint.store
    found: dict[str, list[Stretch]] = {}
    count = {"whole": 0, "sampled": 0, "none": 0}
    read = _read_whole(checkpoint, layers)
    names = list(_matrices(checkpoint))
    with running(progress if whole else None, "matrices", len(names)) as step:
        for name in names:
            # Scales and zero points of a quantized weight may be constant, its codes not.
            info = max(store.parts(name), key=lambda part: part.nbytes)
            watch = store.watch
            if watch is not None and watch.holds(info):
                count[watch.glance(info, whole=whole or name in read)] += 1
                found[name] = list(_told(checkpoint, info, watch))
            else:
                count["none"] += 1
            step(name)
    records = list(_identities(checkpoint, found))
    for stretches in found.values():
        records += [_record(stretch) for stretch in stretches]
    examined = Examined(whole=count["whole"], sampled=count["sampled"], not_read=count["none"])
    return record.model_copy(update={"damage": tuple(records), "examined": examined})


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Stored bytes of all tensors."""
    return sum(info.nbytes for c in checkpoint.store.containers for info in c.tensors.values())


def _read_whole(checkpoint: Checkpoint, layers: Iterable[int]) -> set[str]:
    """Tensors of which measuring the layers reads every row."""
    rows: dict[str, set[tuple[int, int]]] = {}
    whole = set()
    for layer in layers:
        plan = checkpoint.architecture.layers[layer - 1]
        for refs in (plan.refs, *plan.experts):
            for ref in refs.values():
                if ref.ranges is None or ref.transposed or ref.expert is not None:
                    whole.add(ref.weight)
                else:
                    rows.setdefault(ref.weight, set()).update(ref.ranges)
    for name, ranges in rows.items():
        if sum(b - a for a, b in ranges) >= matrix_shape(checkpoint.store.info(name))[1]:
            whole.add(name)
    return whole


def _matrices(checkpoint: Checkpoint) -> Iterator[str]:
    """What is used, and weights beside; masks and tables of positions are neither."""
    used = checkpoint.architecture.used
    for name, info in checkpoint.store.tensors.items():
        columns, rows = matrix_shape(info)
        if rows > 1 and columns > 1 and (name in used or name.endswith("weight")):
            yield name


def _told(checkpoint: Checkpoint, info: TensorInfo, watch: Watch) -> Iterator[Stretch]:
    """What is no damage of a vocabulary is left out: rows of unused tokens are alike, or zero."""
    embedding = checkpoint.architecture.embedding
    rows = None if embedding is None else matrix_shape(checkpoint.store.info(embedding.tokens))[1]
    own = matrix_shape(info)[1]
    for stretch in watch.found(info):
        padding = stretch.what == "repeated" or (
            stretch.what == "zeros" and stretch.rows[0] > 0 and stretch.rows[1] == own - 1
        )
        if own != rows or not padding:
            yield stretch


def _identities(checkpoint: Checkpoint, found: dict[str, list[Stretch]]) -> Iterator[DamageRecord]:
    """Layers that add nothing, whose two zero matrices are then no findings of their own."""
    for number, plan in enumerate(checkpoint.architecture.layers, 1):
        refs = [ref for role in _ADDING if (ref := plan.refs.get(role))]
        names = [ref.weight for ref in refs]
        zero = all(any(s.whole for s in found.get(name, ())) for name in names)
        biases = [checkpoint.store.read(ref.bias) for ref in refs if zero and ref.bias]
        if len(names) == 2 and zero and not any(bias.any() for bias in biases):
            for name in names:
                del found[name]
            yield DamageRecord(
                tensor=plan.prefix.rstrip("."),
                file=checkpoint.store.info(names[0]).path.name,
                what="identity",
                layer=number,
            )


def _record(stretch: Stretch) -> DamageRecord:
    return DamageRecord(
        tensor=stretch.tensor.name,
        file=stretch.tensor.path.name,
        what=stretch.what,
        rows=stretch.rows,
        bytes=(stretch.begin, stretch.end),
        count=stretch.count,
    )
