"""Write docs/zoo.md and its picture from `fixtures/zoo/training.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.zoo import ORIGINS, TRAINED, ZOO

DOCS = Path(__file__).parents[1] / "docs"

_TEXT = """\
# The zoo: models whose lineage is known

For people who change how lineage is found, and need models whose lineage is known.

Written by `python -m tools.make_zoo`, which trains everything here from nothing in about 12
minutes of one core (torch {torch}, one thread; the same bits again on the same machine). They
are tiny LLaMAs: 4 layers, width 96, 192 neurons a layer, 4 query and 2 key-value heads, tied
embeddings of a byte-level BPE with 1,024 entries, {parameters} parameters in BF16. They serve
tests, and are of no use as language models. Their text is Python's (PSF licence): the help topics
of `pydoc_data` for pre-training, source code and docstrings of the library for what comes after.

## Trained, and committed in `fixtures/zoo`

All that start from random weights see the same data in the same order. Losses are in nats a token
on documents held out, without the paragraphs that others quote; the entropy of the tokens'
frequencies there is what ignoring all context could reach at best.

| model | from | what | text | steps | rate | loss: topics | loss: its text | entropy of it |
|---|---|---|---|---|---|---|---|---|
{trained}

`seed0-early` is `seed0` after a quarter of its steps.

{curves}

## Made of these without training

`python -m tools.zoo DIR` writes them, from fixed seeds (`tools/transforms.py`).

| model | from | what | stored as |
|---|---|---|---|
{made}

`laundered-KIND` are `seed0` after each of the launderings of `tools/launder.py`, which leave the
function as it is; `laundered-finetune` is `finetune` after all of them, `laundered-noisy` is
`laundered-all` with noise of 2% of each matrix' standard deviation. All are stored as F32.

What a comparison of any two should say follows from who descends from whom by which change:
`tools.zoo.relation(a, b)`, and `RELATIONS` for the pairs that are tested.

## Independent models

`python -m tools.make_independent DIR` trains models of one configuration on the same data in the
same order, that share nothing but that; how alike they are is what comparisons are calibrated
against. They are not committed.
"""


def write_docs() -> Path:
    """Write docs/zoo.md, and docs/zoo.svg if matplotlib is there."""
    facts = json.loads((ZOO / "training.json").read_text())
    models = facts["models"]
    text = _TEXT.format(
        torch=facts["versions"]["torch"].split("+")[0],
        parameters=f"{facts['parameters']:,}",
        trained="\n".join(_trained(n, models[n], facts["texts"]) for n in TRAINED),
        made="\n".join(
            f"| {name} | {', '.join(o.parents) or '-'} | {o.how} | {o.dtype} |"
            for name, o in ORIGINS.items()
            if o.make and not name.startswith("laundered")
        ),
        curves=_curves(models),
    )
    (DOCS / "zoo.md").write_text(text)
    return DOCS / "zoo.md"


def _trained(name: str, facts: dict[str, Any], texts: dict[str, Any]) -> str:
    if "first_steps_of" in facts:
        cells = ["-", f"the first steps of {facts['first_steps_of']}", "", f"{facts['steps']:,}"]
        cells += ["", f"{facts['loss']['topics']:.2f}", "", ""]
    else:
        own = facts["text"]
        how = ORIGINS[name].how if facts["parent"] else "pre-trained"
        cells = [facts["parent"] or "-", how, own, f"{facts['steps']:,}", f"{facts['peak']:g}"]
        cells += [f"{facts['loss'][t]:.2f}" for t in ("topics", own)]
        cells.append(f"{texts[own]['unigram_entropy']:.2f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def _curves(models: dict[str, Any]) -> str:
    """A picture's link, or a table."""
    curves = {name: m["held_out"] for name, m in models.items() if "held_out" in m}
    try:
        import matplotlib
    except ImportError:
        head = "| model | loss on documents held out of its text, after equal numbers of steps |\n"
        rows = (f"| {n} | {' '.join(f'{v:.2f}' for _, v in c)} |" for n, c in curves.items())
        return head + "|---|---|\n" + "\n".join(rows)
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "zoo", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), label=name, marker=".")
    axes.set(xlabel="step", ylabel="held-out loss of its text, nats a token")
    axes.legend(ncols=2)
    figure.savefig(DOCS / "zoo.svg", metadata={"Date": None})
    return "![Held-out loss of each model during its training](zoo.svg)"
