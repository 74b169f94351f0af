"""How soon the page of an audit can be used in Chromium, and how much of it is drawn.

    python -m benchmarks.audit_page [--write]

Prints, as a markdown table, for made-up audits of several sizes: the size of the page, the time to
make it, the median time from the beginning of loading until its tables are drawn and answer, and
the rows that are drawn then and after a jump to the end. Asserts nothing; `--write` puts the table
into docs/reports.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import click
from playwright.sync_api import Browser, sync_playwright

from benchmarks.common import fill_page, load, processor, spread
from ckptforensics.render import render
from tests.support.audits import audit

SIZES = (10, 1_000, 10_000)
RUNS = 5


def seen(browser: Browser, file: Path) -> tuple[float, int, int]:
    """Seconds until the page can be used, rows drawn then, and behind the last of all models."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]")
    ready = float(page.evaluate("document.documentElement.dataset.ready")) / 1000
    first = page.locator("tr.row").count()
    page.locator(".grid[aria-label=Models]").focus()
    page.keyboard.press("End")
    last = page.locator("tr.row").count()
    page.close()
    return ready, first, last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = [
        "| models | findings | page | made in | can be used after | rows drawn | at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for count in SIZES:
            document = audit(count)
            begun = time.perf_counter()
            text = render(document, "html")
            made = time.perf_counter() - begun
            file = Path(folder) / f"{count}.html"
            file.write_text(text, encoding="utf-8")
            times, first, last = map(
                list, zip(*(seen(browser, file) for _ in range(RUNS)), strict=True)
            )
            lines.append(
                f"| {count:,} | {len(document.findings):,} | {file.stat().st_size / 1e6:.1f} MB "
                f"| {made:.1f} s | {spread(times)} | {max(first)} | {max(last)} |"
            )
        on = f"{processor()}, {os.cpu_count()} cores, Chromium {browser.version}, load {load()}"
    table = "\n".join([*lines, "", f"Measured on {on}: median and range of {RUNS} runs."])
    click.echo(table)
    if options.write:
        fill_page(Path("docs/reports.md"), "page", table)


if __name__ == "__main__":
    main()
