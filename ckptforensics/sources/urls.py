"""Files behind URLs that fsspec reads."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname


def path_of_url(url: str) -> Path:
    """The local path that `file://` names."""
    return Path(url2pathname(urlsplit(url).path))
