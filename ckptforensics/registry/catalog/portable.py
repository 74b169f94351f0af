"""A catalog as one portable file, and what of such a file is taken into another.

A zip file with `manifest.json` (the SHA-256 of every other member), `models.jsonl` and the
signatures. It is made by anybody, so nothing in it is believed: names of members are compared with
what they may be, sizes are bounded, digests are verified, records are validated.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ckptforensics.errors import CkptError, FormatError, ResultError
from ckptforensics.registry.catalog import database
from ckptforensics.registry.catalog.sketches import kept_sketch
from ckptforensics.registry.catalog.writer import CatalogWriter
from ckptforensics.registry.reading import Reading
from ckptforensics.registry.sketch.record import sketch_of
from ckptforensics.results import Signature, load_result, write_atomically
from ckptforensics.results.records import Frozen, Name
from ckptforensics.results.sketch import Sketched
from ckptforensics.sources import parse_json_object

# The second has sketches too.
_FORMATS = ("ckptforensics catalog 1", "ckptforensics catalog 2")
_MOST_MEMBERS = 1_000_001
_MOST_ARRAY_BYTES = 1_000_000_000
_MOST_LIST_BYTES = 4_000_000_000
_NO_TIME = (1980, 1, 1, 0, 0, 0)


class _Row(Frozen):
    """One model of the file."""

    name: Name
    commit: Name | None
    adapter: bool
    code: str | None
    reading: Reading
    sketch: Sketched | None = None


def export_catalog(path: Path, output: Path, *, names: tuple[str, ...] = ()) -> int:
    """Write the signed or sketched models of a catalog to one file; returns their number.

    Parameters
    ----------
    names : only models of these names, all where it is empty

    Raises
    ------
    CkptError
        `UsageError` if there is no such catalog, `OutputError` if the file cannot be written.
    """
    with database.reading(path) as db:
        rows = [
            row
            for row in db.execute(
                "SELECT models.*, sketch_json FROM models LEFT JOIN sketches ON sketches.id = "
                "models.sketch WHERE coalesce(signature, sketch) IS NOT NULL ORDER BY place"
            )
            if not names or row["name"] in names or row["name"].partition("@")[0] in names
        ]
        kept = list(map(_exported, rows))
    kept = [row for row in kept if row.reading.signature is not None or row.sketch is not None]
    listing = "".join(f"{row.model_dump_json()}\n" for row in kept).encode()
    arrays = sorted({row["signature"] for row in rows if row["signature"] is not None})
    digests = {f"arrays/{sha256}.safetensors": sha256 for sha256 in arrays}
    digests["models.jsonl"] = hashlib.sha256(listing).hexdigest()
    manifest = {"format": _FORMATS[-1], "models": len(kept), "sha256": digests}

    def write(file: Path) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            text = json.dumps(manifest, indent=1).encode()
            archive.writestr(_member("manifest.json"), text, zipfile.ZIP_DEFLATED)
            archive.writestr(_member("models.jsonl"), listing, zipfile.ZIP_DEFLATED)
            for sha256 in arrays:
                data = database.array_path(path, sha256).read_bytes()
                archive.writestr(_member(f"arrays/{sha256}.safetensors"), data)

    write_atomically(output, write)
    return len(kept)


def _exported(row: sqlite3.Row) -> _Row:
    with database.row_of("models", row["id"]):
        return _Row(
            name=row["name"],
            commit=row["commit"],
            adapter=bool(row["adapter"]),
            code=row["code"],
            reading=_portable(Reading.model_validate_json(row["reading_json"])),
            sketch=_sketched(row["sketch_json"]),
        )


def import_catalog(catalog: CatalogWriter, file: Path) -> int:
    """Take the models of an exported file into a catalog; returns their number.

    They are there by their signatures only: their weights are not at hand.

    Raises
    ------
    FormatError
        if it is no such file, or what it holds is not what its manifest says.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = _manifest(archive, file)
            rows = list(_rows(archive, file, manifest))
            names = {(row.name, row.commit, row.reading.weights) for row in rows}
            if len(names) < len(rows):
                raise FormatError("the file lists a model twice", path=file)
            for row in rows:
                if row.reading.signature is not None:
                    _keep_array(catalog, archive, file, row.reading.signature.sha256)
            for row in rows:
                catalog.put_imported(
                    row.name, row.commit, row.reading, row.code, row.adapter, row.sketch
                )
            return len(rows)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as problem:
        raise FormatError(f"this is no exported catalog: {problem}", path=file) from None


def _portable(reading: Reading) -> Reading:
    """Without what is true on one machine only: devices, inodes and times of its files."""
    files = tuple(file.model_copy(update={"changed": ""}) for file in reading.files)
    return reading.model_copy(update={"files": files})


def _sketched(text: str | None) -> Sketched | None:
    """None also for what is no sketch, which nobody could import."""
    try:
        return None if text is None else kept_sketch(text)
    except ResultError:
        return None


def _member(name: str) -> zipfile.ZipInfo:
    # The same catalog makes the same bytes.
    return zipfile.ZipInfo(name, _NO_TIME)


def _manifest(archive: zipfile.ZipFile, file: Path) -> dict[str, str]:
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS or len({m.filename for m in members}) < len(members):
        raise FormatError("the file holds too many members, or one twice", path=file)
    text = _content(archive, file, "manifest.json", _MOST_LIST_BYTES)
    manifest = parse_json_object(text, path=file, what="manifest")
    digests: Any = manifest.get("sha256")
    if manifest.get("format") not in _FORMATS or not isinstance(digests, dict):
        raise FormatError("this is no exported catalog, or one of another version", path=file)
    more = {m.filename for m in members} - {"manifest.json", *digests}
    if more:
        raise FormatError(f"the manifest does not list '{min(more)}'", path=file)
    return digests


def _rows(archive: zipfile.ZipFile, file: Path, manifest: dict[str, str]) -> Iterator[_Row]:
    listing = _content(archive, file, "models.jsonl", _MOST_LIST_BYTES)
    if hashlib.sha256(listing).hexdigest() != manifest.get("models.jsonl"):
        raise FormatError("'models.jsonl' is not what the manifest says", path=file)
    for line in listing.splitlines():
        try:
            row = _Row.model_validate_json(line)
        except ValidationError as problem:
            first = problem.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise FormatError(f"a model of the file: {place}: {first['msg']}", path=file) from None
        if row.reading.signature is None and row.sketch is None:
            raise FormatError(
                f"the model {row.name!r} of the file has neither signature nor sketch", path=file
            )
        if row.reading.signature is not None and row.reading.facts is None:
            raise FormatError(f"the model {row.name!r} of the file has no sizes", path=file)
        try:
            if row.sketch is not None:
                sketch_of(row.sketch)
        except ResultError as problem:
            raise FormatError(f"the model {row.name!r}: {problem.message}", path=file) from None
        yield row


def _keep_array(catalog: CatalogWriter, archive: zipfile.ZipFile, file: Path, sha256: str) -> None:
    home = catalog.array(sha256)
    if home.is_file():
        return
    data = _content(archive, file, f"arrays/{sha256}.safetensors", _MOST_ARRAY_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise FormatError(f"the signature {sha256} is not what its name says", path=file)
    arrived = catalog.incoming / f"{sha256}.safetensors"
    arrived.write_bytes(data)
    try:
        if not isinstance(load_result(arrived), Signature):
            raise FormatError(f"the signature {sha256} is none", path=file)
    except CkptError as problem:
        arrived.unlink()
        raise FormatError(f"the signature {sha256}: {problem.message}", path=file) from None
    home.parent.mkdir(parents=True, exist_ok=True)
    arrived.replace(home)


def _content(archive: zipfile.ZipFile, file: Path, name: str, most: int) -> bytes:
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise FormatError(f"the file holds no '{name}'", path=file) from None
    with archive.open(member) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise FormatError(f"'{name}' is larger than {most:,} bytes", path=file)
    return data
