"""How a catalog is served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class ServeOptions:
    """How a catalog is served.

    Attributes
    ----------
    catalog : its file
    host, port : where; any free port for 0
    token : what every request must show; None where only this machine is served
    allow_hub : whether models of the Hub may be named to find their relatives
    memory : bytes that the process which sketches a model of the Hub may use
    """

    catalog: Path
    host: str = LOOPBACK
    port: int = 8000
    token: str | None = None
    allow_hub: bool = False
    memory: int = 2_000_000_000
