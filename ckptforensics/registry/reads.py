"""Read the models that are new or changed, each in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ckptforensics.errors import CkptError, one_line
from ckptforensics.jobs.processes import Job
from ckptforensics.progress import Progress, running
from ckptforensics.registry.catalog.models import CataloguedModel
from ckptforensics.registry.catalog.writer import CatalogWriter, Work, is_local, place_of
from ckptforensics.registry.claims.matching import Names
from ckptforensics.registry.code import reading_code
from ckptforensics.registry.found import Found, Listing
from ckptforensics.registry.options import AuditOptions
from ckptforensics.registry.reading import Reading, Stumble, unread_files
from ckptforensics.registry.request import ReadingRequest
from ckptforensics.registry.stores.files import read_small
from ckptforensics.sources import parse_json_object

_ADAPTER = "adapter_config.json"
_MOST_CONFIG_BYTES = 10_000_000
_MOST_MESSAGE = 400
# What may be otherwise the next time though nothing of the model has changed.
_PASSING = frozenset({"limits", "crash", "unreadable", "dependency", "remote"})


@dataclass(frozen=True)
class _Task:
    """A model that is to be read."""

    found: Found
    listed: str
    base: CataloguedModel | None = None


def read_models(
    catalog: CatalogWriter,
    listing: Listing,
    run: int,
    options: AuditOptions,
    work: Work,
    progress: Progress | None,
) -> set[str]:
    """Read what is new or changed into the catalog; returns the places of all other models."""
    reused: set[str] = set()
    found = [_absolute(one) for one in listing.models]
    # An adapter is read together with its base, which must be in the catalog by then.
    bases = [one for one in found if not one.adapter]
    adapters = [one for one in found if one.adapter]
    tasks = _new(catalog, bases, None, run, options, reused)
    with running(progress, "models", len(listing.models) - len(reused)) as step:
        _read(catalog, tasks, run, options, work, step)
        if adapters:
            names = Names(catalog.models())
            tasks = _new(catalog, adapters, names, run, options, reused)
            _read(catalog, tasks, run, options, work, step)
    return reused


def _absolute(found: Found) -> Found:
    """The model as any process finds it, wherever that is started.

    Nor can a relative path whose directory has gone be taken for a repository's name.
    """
    if found.opens is None or not is_local(found):
        return found
    return replace(found, opens=os.path.abspath(found.opens))


def _new(
    catalog: CatalogWriter,
    models: list[Found],
    names: Names | None,
    run: int,
    options: AuditOptions,
    reused: set[str],
) -> list[_Task]:
    tasks = []
    for found in models:
        base = None if names is None else _base_of(found, names)
        listed = _listed(found, base, options)
        # A server that states nothing of a file may have another one by now.
        told = all(file.changed for file in found.files)
        # What was signed was sketched too.
        signed = _listed(found, base, replace(options, weights=True))
        if told and (catalog.reuse(found, listed, run) or catalog.reuse(found, signed, run)):
            reused.add(place_of(found))
        else:
            tasks.append(_Task(found, listed, base))
    return tasks


def _read(
    catalog: CatalogWriter,
    tasks: list[_Task],
    run: int,
    options: AuditOptions,
    work: Work,
    step: Callable[[str], None],
) -> None:
    """Read the models of the tasks, and keep each as soon as its process has ended."""
    jobs = [_job(catalog, task, number, options) for number, task in enumerate(tasks)]
    task_of = {job.key: task for job, task in zip(jobs, tasks, strict=True)}
    for job in options.runner.run(jobs):
        task = task_of[job.key]
        reading = _reading_of(job, task.found)
        passing = any(stumble.kind in _PASSING for stumble in reading.stumbles)
        catalog.put_model(
            task.found,
            reading,
            _files(job),
            listed="" if passing else task.listed,
            code=reading_code(),
            run=run,
        )
        work.models += 1
        work.bytes += task.found.bytes
        step(task.found.name)


def _job(catalog: CatalogWriter, task: _Task, number: int, options: AuditOptions) -> Job:
    request_file = catalog.incoming / f"{number}.json"
    request = ReadingRequest(
        found=task.found,
        memory=options.share,
        # An SQLite file in use is of one machine.
        catalog=str(catalog.path) if options.elsewhere is None else None,
        signature=_signature_name(request_file),
        sketch=_sketch_name(request_file) if options.sketches else None,
        code=reading_code(),
        known=catalog.known_digests(task.found),
        base=None if task.base is None else task.base.opens,
        weights=options.weights,
        offline=options.offline,
        elsewhere=options.elsewhere is not None,
    )
    # In ASCII: file names need not be Unicode.
    request_file.write_text(json.dumps(request.model_dump(mode="python"), default=_plain))
    base_bytes = 0 if task.base is None else sum(f.bytes for f in task.base.reading.files)
    return Job(
        task.found.name,
        [str(request_file)],
        options.share,
        module="ckptforensics.registry.worker",
        reserved=options.share + task.found.bytes + base_bytes,
        seconds=options.seconds_for(task.found.bytes),
        sends=(request_file,),
        brings=(_signature_name(request_file), _sketch_name(request_file)),
        needs=_needed(task),
    )


def _needed(task: _Task) -> list[str]:
    """Local files and directories that whoever reads the model must see."""
    needed = [] if task.found.opens is None or not is_local(task.found) else [task.found.opens]
    base = task.base
    if base is not None and base.opens is not None and os.path.isabs(base.opens):
        needed.append(base.opens)
    return needed


def _plain(value: Any) -> Any:
    """What JSON has no word for: records that are no dictionaries, and paths."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _signature_name(request_file: Path) -> str:
    """Name of the file with the signature, which stands beside the request."""
    return request_file.with_suffix(".safetensors").name


def _sketch_name(request_file: Path) -> str:
    """Name of the file with the sketch, likewise."""
    return request_file.with_suffix(".sketch.json").name


def _files(job: Job) -> tuple[Path, Path]:
    """Where the signature and the sketch of a job's model are, if it has them."""
    request_file = Path(job.arguments[0])
    return (
        request_file.with_name(_signature_name(request_file)),
        request_file.with_name(_sketch_name(request_file)),
    )


def _reading_of(job: Job, found: Found) -> Reading:
    """The last reading that the process printed whole, with what ended it if that was no answer."""
    reading = Reading(
        files=unread_files(found),
        stumbles=tuple(Stumble.of(problem) for problem in found.problems),
    )
    for line in reversed(job.printed().splitlines()):
        try:
            reading = Reading.model_validate_json(line)
            break
        except ValidationError:  # cut where the process was ended
            continue
    if job.code == 0:
        return reading
    if job.problem is not None:
        stumble = Stumble(kind="crash", file="", message=one_line(str(job.problem))[:_MOST_MESSAGE])
    elif job.overdue:
        stumble = Stumble(
            kind="limits", file="", message=f"reading it took more than {job.seconds:g} seconds"
        )
    else:
        said = one_line(job.complaint())[:_MOST_MESSAGE]
        stumble = Stumble(
            kind="crash", file="", message=f"the process that read it ended ({job.code}): {said}"
        )
    return reading.model_copy(update={"stumbles": (*reading.stumbles, stumble)})


def _base_of(found: Found, names: Names) -> CataloguedModel | None:
    """The model that an adapter is merged onto, where its configuration names one at hand."""
    config = next((f for f in found.files if f.name == _ADAPTER and f.path is not None), None)
    if config is None or config.path is None:
        return None
    try:
        data = read_small(config.path, _MOST_CONFIG_BYTES)
        base = parse_json_object(data, path=config.path, what="configuration").get(
            "base_model_name_or_path"
        )
    except CkptError:
        return None
    if not isinstance(base, str):
        return None
    match = names.find_from(base, found.path)
    return next((m for m in match.models if m.opens is not None and not m.adapter), None)


def _listed(found: Found, base: CataloguedModel | None, options: AuditOptions) -> str:
    """Digest of all that decides what is read of a model, but for the files' content.

    A file's state stands for its content: device, inode, size and times, which no program changes
    the content without, or a server's ETag or commit.
    """
    facts = [
        reading_code(),
        place_of(found),
        [asdict(replace(file, path=None)) for file in found.files],
        [asdict(problem) for problem in found.problems],
        found.adapter,
        found.opens is None,
        None if base is None else base.identity,
        options.weights,
        options.sketches,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
