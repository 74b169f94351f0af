"""What training does not leave in weights, as rows of a result; see `tensors.damage`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from ckptforensics.architectures import UNUSED_REASONS, Role
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.progress import Progress, running
from ckptforensics.results import DamageRecord, Examined, ModelRecord
from ckptforensics.tensors import TensorInfo, matrix_shape
from ckptforensics.tensors.damage import Stretch, Watch

Level = Literal["finding", "note"]

# The maps whose results a layer adds.
_ADDING: tuple[Role, Role] = ("output", "down")
# Vocabularies are filled up with zeros to a multiple of 64 to 1,024 (128 on each of 8 machines), or
# to a round number; a small one to 128. SmolLM2, MiniLM and Gemma 3 have no such row.
_PADDING = 1024
_SMALL_PADDING = 128
_PADDING_SHARE = 1 / 8
# Tokens that no text has keep the row they began with, or share one: 11 rows of 49,152 do in
# SmolLM2, none in MiniLM and Gemma 3. A vocabulary that was extended may have more of them.
_ALIKE_SHARE = 1 / 32
_MANY_ALIKE_SHARE = 1 / 8


def with_damage(
    record: ModelRecord,
    checkpoint: Checkpoint,
    layers: Iterable[int] = (),
    *,
    whole: bool = False,
    progress: Progress | None = None,
) -> ModelRecord:
    """The record with zeros, constants, repeated rows, bad numbers and layers that add nothing.

    What was read before is not read again. Of other matrices a few pages are looked at, and the
    whole matrix where one of them is damaged; vectors are looked at whole. NaN and infinities are
    looked for in all weights, masks and other constants of the architecture's own excepted.

    Parameters
    ----------
    layers : numbers, from 1, of those that were measured; their matrices are looked at whole, also
        where an interrupted run read them
    whole : look at all of every matrix
    progress : told of each tensor
    """
    store = checkpoint.store
    found: dict[str, list[DamageRecord]] = {}
    zero: set[str] = set()
    count = {"whole": 0, "sampled": 0, "none": 0}
    read = _read_whole(checkpoint, layers)
    names = list(_weights(checkpoint))
    gains = _gains(checkpoint)
    with running(progress if whole else None, "tensors", len(names)) as step:
        for name in names:
            looked = set()
            for part in store.parts(name):
                watch = store.watch
                if watch is None or not watch.holds(part):
                    looked.add("none")
                    continue
                every = whole or name in read or not _is_matrix(part)
                looked.add(watch.glance(part, whole=every))
                if (bad := watch.bad_numbers(part)) is not None:
                    found.setdefault(name, []).append(_record(bad))
            # Scales and zero points of a quantized weight may be constant, its codes not.
            info = max(store.parts(name), key=lambda part: part.nbytes)
            if store.watch is not None and (_is_matrix(info) or name in gains):
                for stretch, level in _told(checkpoint, info, store.watch):
                    found.setdefault(name, []).append(_record(stretch, level))
                    if stretch.whole:
                        zero.add(name)
            count[next(much for much in ("none", "sampled", "whole") if much in looked)] += 1
            step(name)
    records = list(_identities(checkpoint, found, zero))
    for damages in found.values():
        records += damages
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


def _weights(checkpoint: Checkpoint) -> Iterator[str]:
    """What is used, and weights and biases beside; masks and tables of positions are neither."""
    used, unused = checkpoint.architecture.used, checkpoint.architecture.unused
    constant = UNUSED_REASONS["buffer"]
    for name in checkpoint.store.tensors:
        weight = name.endswith(("weight", "bias")) and unused.get(name) != constant
        if name in used or weight:
            yield name


def _is_matrix(info: TensorInfo) -> bool:
    columns, rows = matrix_shape(info)
    return rows > 1 and columns > 1


def _gains(checkpoint: Checkpoint) -> set[str]:
    """Gains of norms, which pass nothing on if they are zero; none where one is added to them."""
    architecture, store = checkpoint.architecture, checkpoint.store
    if architecture.gain_offset:
        return set()
    used = {
        ref.weight
        for plan in architecture.layers
        for role, ref in plan.refs.items()
        if role.endswith("norm")
    }
    read = architecture.used
    other = (n for n in store.tensors if n.endswith("weight") and n not in read)
    return used | {name for name in other if len(store.info(name).shape) == 1}


def _told(
    checkpoint: Checkpoint, info: TensorInfo, watch: Watch
) -> Iterator[tuple[Stretch, Level]]:
    """What was seen in a tensor, but for what is no damage of a vocabulary."""
    embedding = checkpoint.architecture.embedding
    own = matrix_shape(info)[1]
    if embedding is None or own != matrix_shape(checkpoint.store.info(embedding.tokens))[1]:
        yield from ((stretch, "finding") for stretch in watch.found(info))
        return

    def harmless(first: int, last: int) -> bool:
        # The row of a padding token is zero wherever it stands.
        return first == last or (last == own - 1 and _padding(own - first, own) is None)

    for stretch in watch.found(info, harmless):
        level: Level | None = "finding"
        first, last = stretch.rows
        if stretch.what == "zeros" and last == own - 1:
            level = _padding(own - first, own)
        elif stretch.what == "repeated":
            level = _alike(stretch.count / own)
        if level is not None:
            yield stretch, level


def _padding(rows: int, of: int) -> Level | None:
    """What so many rows of zeros at the end of a vocabulary are."""
    share = rows / of
    if share <= _PADDING_SHARE:
        return None if rows <= _PADDING else "note"
    return "note" if rows < _SMALL_PADDING and share < 1 / 2 else "finding"


def _alike(share: float) -> Level | None:
    """What such a share of rows of a vocabulary that equal others is."""
    if share <= _ALIKE_SHARE:
        return None
    return "note" if share <= _MANY_ALIKE_SHARE else "finding"


def _identities(
    checkpoint: Checkpoint, found: dict[str, list[DamageRecord]], zeros: set[str]
) -> Iterator[DamageRecord]:
    """Layers that add nothing, whose two zero matrices are then no findings of their own."""
    for number, plan in enumerate(checkpoint.architecture.layers, 1):
        refs = [ref for role in _ADDING if (ref := plan.refs.get(role))]
        names = [ref.weight for ref in refs]
        zero = zeros.issuperset(names)
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


def _record(stretch: Stretch, level: Level = "finding") -> DamageRecord:
    return DamageRecord(
        tensor=stretch.tensor.name,
        file=stretch.tensor.path.name,
        what=stretch.what,
        rows=stretch.rows,
        bytes=(stretch.begin, stretch.end),
        count=stretch.count,
        level=level,
    )
