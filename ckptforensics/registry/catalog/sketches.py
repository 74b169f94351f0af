"""The sketches of a catalog: written one by one, searched all at once.

Beside the catalog lies one array for each channel, float32, a row for each sketch, which is mapped
and never read whole. It holds nothing that the sketches do not, so that it can be made again.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from ckptforensics.arrays import Floats, Ints
from ckptforensics.errors import FormatError, OutputError, ResultError
from ckptforensics.registry.catalog import database
from ckptforensics.registry.sketch.features import CHANNELS, VERSION, WIDTH, WIDTHS, features
from ckptforensics.registry.sketch.record import Sketch, sketch_of
from ckptforensics.registry.sketch.score import LIMITS, score_of, scores
from ckptforensics.results.find import Channel
from ckptforensics.results.sketch import Sketched

# Estimates of a score above this are of near sketches: five standard deviations of an estimate.
_SURE = 0.5
# Rows that are multiplied at a time, of all channels a few MB.
_BLOCK = 32_768


def put_sketch(db: sqlite3.Connection, path: Path, sketched: Sketched) -> int:
    """Number of a sketch in the catalog at `path`, which is added where it is not there.

    Inside a transaction. Its vectors are written first: a row that no sketch has is never looked at
    and is overwritten.
    """
    text = sketched.model_dump_json()
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    row = db.execute("SELECT id FROM sketches WHERE sha256 = ?", (sha256,)).fetchone()
    if row is not None:
        return int(row["id"])
    # A file that is shorter would be filled with zeros.
    rebuild(db, path)
    (last,) = db.execute("SELECT coalesce(max(id), 0) FROM sketches").fetchone()
    _write_rows(path, last, features(sketch_of(sketched))[None])
    db.execute("INSERT INTO sketches VALUES (?, ?, ?)", (last + 1, sha256, text))
    return int(last) + 1


def sketches(
    db: sqlite3.Connection, numbers: Iterable[int]
) -> tuple[dict[int, Sketch], dict[int, str]]:
    """The sketches of these numbers, and of those that hold what no sketch holds why."""
    found, refused = {}, {}
    for number in numbers:
        row = db.execute("SELECT sketch_json FROM sketches WHERE id = ?", (number,)).fetchone()
        if row is not None:
            try:
                found[number] = sketch_of(kept_sketch(row["sketch_json"]))
            except ResultError as problem:
                refused[number] = problem.message
    return found, refused


def kept_sketch(text: str) -> Sketched:
    """A record of the catalog; ResultError if it holds what this version takes for no sketch."""
    try:
        return Sketched.model_validate_json(text)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ResultError(f"the sketch: {place}: {first['msg']}") from None


def rebuild(db: sqlite3.Connection, path: Path) -> int:
    """Make the arrays anew where rows are missing; returns how many were made."""
    (last,) = db.execute("SELECT coalesce(max(id), 0) FROM sketches").fetchone()
    present = min(_rows_of(file, width) for file, width in _files(path).values())
    rows = db.execute("SELECT id FROM sketches WHERE id > ? ORDER BY id", (present,))
    count = 0
    for row in rows if present < last else ():
        found, _ = sketches(db, [row["id"]])
        # What is no sketch has no vectors; it is told where it is looked for.
        vector = features(found[row["id"]]) if found else np.full(WIDTH, np.nan, np.float32)
        _write_rows(path, row["id"] - 1, vector[None])
        count += 1
    return count


@dataclass(frozen=True)
class Vectors:
    """The vectors of all sketches, mapped: by channel (sketches, width)."""

    channels: Mapping[Channel, Floats]

    def __len__(self) -> int:
        return min(map(len, self.channels.values()), default=0)

    def lacking(self, channel: Channel, beside: Channel) -> Ints:
        """Numbers of the sketches that lack a channel and have the one beside it.

        A vector that is there has unit length, and none of it is exactly zero.
        """
        if not self.channels:
            return np.zeros(0, np.int64)
        lacks, has = self.channels[channel][:, 0] == 0, self.channels[beside][:, 0] != 0
        return np.flatnonzero(lacks & has) + 1

    def rows(self, numbers: Iterable[int]) -> Mapping[Channel, Floats]:
        """The vectors of the sketches of these numbers."""
        at = np.fromiter(numbers, np.int64) - 1
        return {name: array[at] for name, array in self.channels.items()}

    def nearest(self, vector: Floats, limits: Mapping[Channel, float], most: int) -> Ints:
        """Numbers of the sketches nearest to a vector of `features`, the nearest first.

        Every one is looked at: products in blocks, whatever the number of sketches. Behind them
        come those whose vectors are no numbers, which are near to nothing.

        Parameters
        ----------
        limits : of each channel; what counts is the largest product as a share of its limit
        most : at most so many
        """
        parts = dict(zip(CHANNELS, np.split(vector, np.cumsum(WIDTHS)[:-1]), strict=True))
        asked = {
            name: part / np.float32(limits[name]) for name, part in parts.items() if part.any()
        }
        best = np.full(0, -np.inf, np.float32)
        numbers = np.zeros(0, np.int64)
        broken: list[Ints] = []
        for start in range(0, len(self), _BLOCK):
            stop = min(start + _BLOCK, len(self))
            found = np.full(stop - start, -np.inf, np.float32)
            for name, part in asked.items():
                np.maximum(found, self.channels[name][start:stop] @ part, out=found)
            broken.append(np.flatnonzero(np.isnan(found)) + (start + 1))
            # Most blocks have nothing that is nearer than what is kept.
            least = best[-1] if len(best) == most else -np.inf
            above = np.flatnonzero(found > least)
            if above.size:
                if above.size > most:
                    above = above[np.argpartition(-found[above], most)[:most]]
                best = np.concatenate([best, found[above]])
                numbers = np.concatenate([numbers, above + (start + 1)])
                order = np.argsort(-best, kind="stable")[:most]
                best, numbers = best[order], numbers[order]
        return np.concatenate([numbers, *broken])


def near_pairs(
    db: sqlite3.Connection, vectors: Vectors, numbers: Sequence[int]
) -> Iterator[tuple[int, int, float]]:
    """Pairs of the sketches of these numbers that are near, by their places, and 1 - their score.

    What the products leave open, since they estimate, is computed.
    """
    if len(numbers) < 2:
        return
    rows = vectors.rows(numbers)
    exact = cache(lambda number: sketches(db, [number])[0].get(number))
    for i in range(len(numbers) - 1):
        found = np.full(len(numbers) - i - 1, -np.inf, np.float32)
        for name, array in rows.items():
            limit = np.float32(LIMITS[name])
            np.maximum(found, (array[i + 1 :] @ array[i] - limit) / (1 - limit), out=found)
        for k in np.flatnonzero(found > 0):
            score = float(found[k])
            if score < _SURE:
                one, other = exact(numbers[i]), exact(numbers[i + 1 + int(k)])
                score = -1.0 if one is None or other is None else score_of(scores(one, other))
            if score > 0:
                yield i, i + 1 + int(k), 1 - min(score, 1.0)


def open_vectors(db: sqlite3.Connection, path: Path) -> Vectors:
    """Map the arrays of the catalog at `path`.

    Raises
    ------
    FormatError
        if they lack sketches that the catalog has.
    """
    (last,) = db.execute("SELECT coalesce(max(id), 0) FROM sketches").fetchone()
    channels: dict[Channel, Floats] = {}
    for name, (file, width) in _files(path).items():
        rows = min(last, _rows_of(file, width))
        if rows < last:
            raise FormatError(
                f"the array of {last:,} sketches has {rows:,} rows",
                path=file,
                hint="'ckpt catalog vacuum' makes it again",
            )
        if last:
            channels[name] = np.memmap(file, np.float32, "r", shape=(last, width))
    return Vectors(channels)


def _files(path: Path) -> dict[Channel, tuple[Path, int]]:
    folder = database.arrays_folder(path)
    return {
        name: (folder / f"sketches-{VERSION}.{name}.f32", width)
        for name, width in zip(CHANNELS, WIDTHS, strict=True)
    }


def _rows_of(file: Path, width: int) -> int:
    return file.stat().st_size // (4 * width) if file.is_file() else 0


def _write_rows(path: Path, start: int, rows: Floats) -> None:
    """Put rows in place from `start` on, in the arrays of all channels."""
    parts = np.split(rows.astype("<f4"), np.cumsum(WIDTHS)[:-1], axis=1)
    for (file, width), part in zip(_files(path).values(), parts, strict=True):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("r+b" if file.exists() else "w+b") as target:
                target.seek(4 * width * start)
                target.write(np.ascontiguousarray(part).tobytes())
        except OSError as problem:
            raise OutputError(
                f"cannot write the array of sketches: {problem.strerror}", path=file
            ) from None
