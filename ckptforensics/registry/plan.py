"""What an audit would read, and how long the last run took for as much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ckptforensics.errors import CkptError, one_line
from ckptforensics.quantities import size
from ckptforensics.registry.catalog.database import reading
from ckptforensics.registry.options import AuditOptions
from ckptforensics.registry.stores.listing import list_models


@dataclass(frozen=True)
class Plan:
    """What would be read.

    Attributes
    ----------
    models, files, bytes : of the listing
    known : files of the models that are in the state in which the catalog has their digest
    requests : that the listing made, and a run would make again
    seconds : that a run over all would take at the rate of this machine's last run; None where
        the catalog has none
    not_listed : what of the sources was not, and why
    """

    models: int
    files: int
    bytes: int
    known: int
    requests: int
    seconds: float | None
    not_listed: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "models": self.models,
            "files": self.files,
            "bytes": self.bytes,
            "files_known": self.known,
            "requests": self.requests,
            "seconds": self.seconds,
            "not_listed": [{"what": what, "reason": why} for what, why in self.not_listed],
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"models    {self.models:,}"
        yield f"files     {self.files:,}, {self.known:,} of them as the catalog knows them"
        yield f"bytes     {size(self.bytes)}"
        yield f"requests  {self.requests:,}"
        if self.seconds is None:
            yield "time      unknown: the catalog has no complete run to go by"
        else:
            yield f"time      about {self.seconds:,.0f} s if all is read, at the last run's rate"
        for what, why in self.not_listed:
            yield one_line(f"not listed: {what}: {why}")


def plan_of(sources: Sequence[str], options: AuditOptions) -> Plan:
    """List the sources and read nothing else; errors as `list_models`."""
    listing = list_models(sources, offline=options.offline)
    files = [file for found in listing.models for file in found.files]
    nbytes = sum(file.bytes for file in files)
    known, rate = 0, None
    try:
        with reading(options.catalog) as connection:
            stamps = {row[0] for row in connection.execute("SELECT changed FROM files")}
            known = sum(file.changed in stamps for file in files)
            row = connection.execute(
                "SELECT seconds / read_bytes FROM runs WHERE ended IS NOT NULL AND read_bytes > 0 "
                "ORDER BY id DESC LIMIT 1"
            ).fetchone()
            rate = None if row is None else float(row[0])
    except CkptError:  # there is none yet
        pass
    return Plan(
        models=len(listing.models),
        files=len(files),
        bytes=nbytes,
        known=known,
        requests=listing.requests,
        seconds=None if rate is None else rate * nbytes,
        not_listed=listing.not_read,
    )
