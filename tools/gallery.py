"""The figures of docs/gallery.md, of SmolLM2 135M Instruct and Gemma 3 270M.

    python -m tools.gallery                 write the figures into docs/gallery/
    python -m tools.gallery --saved DIR     keep the results there, and draw those that are there

Running the models takes some minutes on two cores. Needs the packages of the `test` extra.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from ckptforensics.cli.main import main as ckpt
from ckptforensics.render import plot_document
from ckptforensics.results import load_document
from tools import gemma3, smollm2

ROOT = Path(__file__).resolve().parents[1]
GALLERY = ROOT / "docs" / "gallery"
# A text of another domain than prose.
CODE = ROOT / "ckptforensics" / "results" / "layers.py"
_COLORS = 256
# Figure to command and options; a small part of the text is enough for what is seen.
SMOLLM2 = {
    "layers": ("layers",),
    "norms": ("norms",),
    "trace": ("trace",),
    "empirical": ("empirical", "--limit", "2048"),
    "sinks": ("sinks", "--limit", "1024", "--other-file", str(CODE)),
    "ablation": ("ablate", "--limit", "512"),
    "paths": ("paths", "--vocabulary", "2000", "--second", "500"),
}
GEMMA3 = {
    "layers": ("layers",),
    "trace": ("trace", "--bos"),
    "empirical": ("empirical", "--bos", "--limit", "1024"),
    "sinks": ("sinks", "--bos", "--limit", "512"),
}


def make(saved: Path) -> list[Path]:
    """Write all figures; results that `saved` holds are not made again.

    Raises
    ------
    RuntimeError
        if a command fails.
    """
    models = {"smollm2": (smollm2.gguf_file(), SMOLLM2), "gemma3": (gemma3.gguf_file(), GEMMA3)}
    files = []
    for name, (model, commands) in models.items():
        for figure, (command, *options) in commands.items():
            result = saved / f"{name}-{figure}.json"
            words = [command, str(model), *options, "--quiet", "-o", str(result)]
            if not result.exists() and ckpt(words):
                raise RuntimeError(f"ckpt {' '.join(words)} failed")
            files.append(GALLERY / f"{name}-{figure}.png")
            plot_document(load_document(result), files[-1])
            _shrink(files[-1])
    return files


def _shrink(file: Path) -> None:
    """Keep as many colours as the eye can tell: a third of the bytes."""
    with Image.open(file) as image:
        image.convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saved", type=Path, help="folder of results, which is kept")
    saved = parser.parse_args().saved
    GALLERY.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for file in make(saved or Path(folder)):
            print(file)


if __name__ == "__main__":
    main()
