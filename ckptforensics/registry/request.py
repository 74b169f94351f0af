"""What a process that reads one model is told."""

from __future__ import annotations

from pydantic import Field

from ckptforensics.registry.found import Found
from ckptforensics.results.records import Frozen, Name


class ReadingRequest(Frozen):
    """One model to read, and with what means.

    Attributes
    ----------
    found : the model as it was listed
    memory : bytes that the process may use beside the files that it maps
    catalog : the catalog's file, in which signatures of the same weights are looked up
    signature : where the signature's file is written, from the request's own directory
    sketch : where the sketch is written, likewise; None where no sketch is wanted
    code : digest of the code that reads, without which no signature is taken from the catalog
    known : `FoundFile.changed` to the SHA-256 that was computed of a file in that state
    base : what an adapter is merged onto, where that is at hand
    weights : whether the weights are analysed, not only their headers
    offline : ask no server
    elsewhere : whether the model was listed on another machine, which has other numbers for devices
    """

    found: Found
    memory: int
    catalog: Name | None
    signature: Name
    sketch: Name | None = None
    code: str
    known: dict[str, str] = Field(default_factory=dict)
    base: Name | None = None
    weights: bool = True
    offline: bool = False
    elsewhere: bool = False
