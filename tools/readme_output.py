"""Put the real output of `ckpt` on SmolLM2 into README.md.

    python -m tools.readme_output

Runs the commands shown between the markers and replaces what stands between them, so that the
README never shows anything the tool did not print.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tools.smollm2 import gguf_file

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- output: begin -->", "<!-- output: end -->"
# Layers shown of the table of `sign`; the others are elided.
_SHOWN = {"1", "2", "3", "12", "13", "29", "30"}


def shown_output() -> str:
    """The README's section, with the commands' output."""
    model = gguf_file()
    parts = []
    for words, folder, keep in (
        (["sign", model.name], model.parent, _elide_sign),
        (["layers", model.name], model.parent, _elide_layers),
        (["compare", "fixtures/zoo/seed0", "fixtures/zoo/lora"], ROOT, _elide_compare),
    ):
        command = [sys.executable, "-m", "ckptforensics", *words, "--no-progress"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        lines = keep(done.stdout.splitlines())
        parts.append(f"```console\n$ ckpt {' '.join(words)}\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(parts)


def _elide_sign(lines: list[str]) -> list[str]:
    kept: list[str] = []
    for line in lines:
        row = re.match(r" *(\d+) +\S", line)
        if row is None or row[1] in _SHOWN:
            kept.append(line)
        elif kept[-1] != "  ...":
            kept.append("  ...")
    return kept


def _elide_layers(lines: list[str]) -> list[str]:
    kept: list[str] = []
    shown = True
    for line in lines:
        if row := re.match(r"layer (\d+) ", line):
            shown = row[1] in {"12", "29"}
            if not shown and kept[-1] != "...":
                kept.append("...")
        elif line.startswith("strongest"):
            shown = True
        if shown:
            kept.append(line)
    return kept


def _elide_compare(lines: list[str]) -> list[str]:
    """All up to what is described without a p-value, and what changed."""
    described = next(i for i, line in enumerate(lines) if line.startswith("after the recovered"))
    return [*lines[:described], "..."]


def main() -> None:
    """Rewrite README.md."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{shown_output()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
