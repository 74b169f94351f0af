"""How long the pages of `ckpt serve` take, over catalogs of several sizes.

    python -m benchmarks.serving [--write]

Prints, as a markdown table, for made-up audits of several sizes: the size of each page, what the
first request after a change of the catalog takes, and the median and range of requests behind it;
then how long 200 requests take that come together. Asserts nothing; `--write` puts the table into
docs/serve.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import click

from benchmarks.common import fill_page, load, processor
from tests.support.catalogs import made_up
from tests.support.served import Server, serving

SIZES = (100, 1_000)
RUNS = 9
AT_ONCE = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = [
        "| models | page | size | first, after a change | then |",
        "|---|---|---|---|---|",
        *(row for count in SIZES for row in measure(count)),
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("starlette", "uvicorn"))
    on = (
        f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, {versions}, load {load()}"
    )
    table = "\n".join(
        [*lines, "", f"Measured on {on}; `then`: median and range of {RUNS} requests."]
    )
    click.echo(table)
    if options.write:
        fill_page(Path("docs/serve.md"), "pages", table)


def measure(count: int) -> Iterator[str]:
    """A row a page of a catalog of so many models."""
    with tempfile.TemporaryDirectory() as folder:
        catalog = Path(folder) / "models.db"
        made_up(catalog, count)
        with sqlite3.connect(catalog) as db:
            (number,) = db.execute("SELECT max(id) FROM models").fetchone()
        db.close()
        for path in ("/", "/.json", "/models", "/models.json", f"/models/{number}", "/catalog"):
            # Of a server of its own, so that nothing is made yet.
            with serving(catalog) as server:
                first, size = asked(server, path)
                times = sorted(asked(server, path)[0] for _ in range(RUNS))
                median = times[RUNS // 2]
                shown = path.replace(str(number), "N")
                yield (
                    f"| {count:,} | `{shown}` | {size / 1e3:,.0f} kB | {milliseconds(first)} "
                    f"| {milliseconds(median)} ({milliseconds(times[0])} to "
                    f"{milliseconds(times[-1])}) |"
                )
        with serving(catalog) as server:
            asked(server, "/models")
            began = time.perf_counter()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda _: asked(server, "/models"), range(AT_ONCE)))
            took = time.perf_counter() - began
            yield f"| {count:,} | {AT_ONCE} times `/models` at once | | | {took:.1f} s for all |"


def asked(server: Server, path: str) -> tuple[float, int]:
    """Seconds until a page is there, and its bytes."""
    began = time.perf_counter()
    answer = server.ask(path)
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status}")
    return time.perf_counter() - began, len(answer.body)


def milliseconds(seconds: float) -> str:
    """In words."""
    return f"{seconds * 1e3:,.0f} ms"


if __name__ == "__main__":
    main()
