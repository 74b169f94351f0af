"""Find by an uploaded sketch, or by the name of a model of the Hub."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from pathlib import Path

from anyio import to_thread
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Message

from ckptforensics.errors import CkptError, one_line
from ckptforensics.jobs.limited import ENDS_WITH
from ckptforensics.registry.find import FindOptions, find
from ckptforensics.registry.sketch.record import sketch_of
from ckptforensics.results.find import FindDocument
from ckptforensics.results.sketch import SketchDocument
from ckptforensics.results.versions import read_document
from ckptforensics.server.answers import Refused
from ckptforensics.server.options import ServeOptions
from ckptforensics.sources import parse_json_object
from ckptforensics.sources.hub import HUB_ID

# A sketch takes less than 100 kB, and what is said of its model seldom more.
MOST_BYTES = 1_000_000
MOST_AT_ONCE = 2
UPLOAD_SECONDS = 30.0
HUB_SECONDS = 300.0
_LONGEST_NAME = 200
_UPLOAD = Path("sketch")
_MOST_MESSAGE = 400


class Finds:
    """Answers what is looked for: so many at a time, the others are told to come again."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._running = 0

    async def answer(self, request: Request) -> FindDocument:
        """The models whose sketches are near what the request brings.

        Raises
        ------
        Refused
            if it brings nothing that can be looked for, too much or too slowly, or if as much as
            can be is looked for already.
        """
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                asked = await _asked(request)
        except TimeoutError:
            raise Refused(408, "the upload did not end in time") from None
        # Whoever is slow to upload takes nobody's place.
        if self._running >= MOST_AT_ONCE:
            raise Refused(
                503, "others are looking for something just now: try again", {"Retry-After": "2"}
            )
        self._running += 1
        try:
            if isinstance(asked, str):
                asked = await self._of_hub(asked)
            return await to_thread.run_sync(self._find, asked)
        finally:
            self._running -= 1

    def _find(self, sketch: SketchDocument) -> FindDocument:
        catalog = self._options.catalog
        found = find(sketch, FindOptions(catalog, compare=False))
        return found.model_copy(update={"catalog": Path(found.catalog).name})

    async def _of_hub(self, name: str) -> SketchDocument:
        """The sketch of a model of the Hub, made by a process of its own."""
        if not self._options.allow_hub:
            raise Refused(403, "models of the Hub can be named after 'ckpt serve --allow-hub'")
        if len(name) > _LONGEST_NAME or not HUB_ID.fullmatch(name):
            raise Refused(400, "a model of the Hub is named as org/name or org/name@revision")
        limited = ("ckptforensics.jobs.limited", str(self._options.memory), "ckptforensics")
        flags = ("--format=json", "--quiet", "--no-progress")
        # In an empty folder no name of a repository is that of a directory.
        with tempfile.TemporaryDirectory(prefix="ckpt-serve-") as folder:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *limited, "sketch", *flags, "--", name),
                cwd=folder,
                env={**os.environ, ENDS_WITH: str(os.getpid())},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                async with asyncio.timeout(HUB_SECONDS):
                    printed, told = await process.communicate()
            except TimeoutError:
                raise Refused(504, "the Hub did not answer in time") from None
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode:
            lines = told.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
            why = re.sub("^ckpt: error: ", "", lines[-1])
            raise Refused(400, one_line(why)[:_MOST_MESSAGE])
        return read_sketch(printed)


def read_sketch(data: bytes) -> SketchDocument:
    """The sketch that a file holds; Refused if it holds none that can be read."""
    try:
        document = read_document(parse_json_object(data, path=_UPLOAD, what="the file"), _UPLOAD)
        if not isinstance(document, SketchDocument):
            raise Refused(400, f"this is a saved {document.kind} and no sketch")
        sketch_of(document.found)
    except CkptError as problem:
        said = problem.message + (f"; {problem.hint}" if problem.hint else "")
        raise Refused(400, one_line(said)[:_MOST_MESSAGE]) from None
    return document


async def _asked(request: Request) -> SketchDocument | str:
    """The sketch that a request uploads, or the name that it gives."""
    if int(request.headers.get("content-length") or 0) > MOST_BYTES:
        raise _too_large()
    request = Request(request.scope, _Bounded(request))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        data = await request.body()
        # What `curl --data-binary @sketch.json` says of its kind is not true.
        if kind != "application/x-www-form-urlencoded" or data.lstrip()[:1] == b"{":
            return await to_thread.run_sync(read_sketch, data)
    async with request.form(max_files=1, max_fields=2) as form:
        upload, name = form.get("sketch"), form.get("hub")
        if isinstance(upload, UploadFile):
            return await to_thread.run_sync(read_sketch, await upload.read())
    if isinstance(name, str) and name.strip():
        return name.strip()
    raise Refused(400, "upload a sketch as 'sketch', or name a model of the Hub as 'hub'")


class _Bounded:
    """What a request brings, refused as soon as it is too much."""

    def __init__(self, request: Request) -> None:
        self._receive, self._bytes = request.receive, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > MOST_BYTES:
            raise _too_large()
        return message


def _too_large() -> Refused:
    return Refused(413, f"a sketch has less than {MOST_BYTES / 1e6:g} MB")
