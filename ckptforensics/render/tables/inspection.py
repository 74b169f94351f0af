"""What a checkpoint holds, as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ckptforensics.errors import one_line
from ckptforensics.render.tables.console import fact, make_console, make_table, print_table, text_of
from ckptforensics.render.tables.facts import heading, skipped
from ckptforensics.render.view import View
from ckptforensics.results import InspectDocument, TensorRecord
from ckptforensics.results.inspection import TensorUse

_SHAPES_SHOWN = 3
_METADATA_SHOWN = 8
_SHORT_VALUE = 60


def inspection_table(document: InspectDocument, view: View) -> str:
    """The architecture, the files, and the tensors by use, or one by one if verbose."""
    console = make_console(view)
    heading(console, document.model)
    fact(console, "covers", document.description)
    fact(
        console,
        "block",
        f"{document.residual}, {document.norm} norm (eps {document.epsilon:g}), "
        f"{document.activation}, "
        + ("no FFN" if document.ffn_width is None else f"FFN width {document.ffn_width:,}"),
    )
    fact(
        console,
        "heads",
        f"{document.num_heads} of width {document.head_dim}, {document.num_kv_heads} key-value"
        if document.num_heads
        else "no attention is analysed",
    )
    vocabulary = document.vocabulary_size
    bos = document.bos_token_id
    fact(
        console,
        "vocabulary",
        ("no embeddings" if vocabulary is None else f"{vocabulary:,}")
        + ("" if bos is None else f", begin-of-sequence {bos}"),
    )
    fact(
        console,
        "parameters",
        f"{document.parameters:,}, of which {document.parameters_used:,} are read",
    )
    skipped(console, document.skipped)
    _metadata(console, document, view.verbose)
    files = make_table("file", "bytes", "tensors", "header digest")
    for file in document.model.files:
        tensors = document.tensors_in(file.name)
        files.add_row(one_line(file.name), f"{file.bytes:,}", str(tensors), file.header_sha256[:16])
    print_table(console, files)
    print_table(console, _every_tensor(document) if view.verbose else _by_use(document))
    return text_of(console)


def _metadata(console: Console, document: InspectDocument, verbose: bool) -> None:
    """What the header says beside the tensors, the first of it unless verbose."""
    items = list(document.metadata.items())
    shown = items if verbose else items[:_METADATA_SHOWN]
    for key, value in shown:
        text = str(value)
        if len(text) > _SHORT_VALUE and not verbose:
            text = f"{text[:_SHORT_VALUE]}..."
        fact(console, "metadata", f"{key}: {text}")
    if len(shown) < len(items):
        fact(console, "metadata", f"and {len(items) - len(shown):,} more; -v shows them")


def _every_tensor(document: InspectDocument) -> Table:
    table = make_table("tensor", "dtype", "shape", "use")
    for t in document.tensors:
        # Of a stored part, the record above is the weight.
        use = _use(t) if t.part_of is None else "stored part"
        table.add_row(one_line(t.name), t.dtype, _shape(t.shape), use)
    return table


def _by_use(document: InspectDocument) -> Table:
    table = make_table("use", "tensors", "dtypes", "shapes", "bytes")
    for use in document.uses:
        shapes = [_shape(shape) for shape in use.shapes[:_SHAPES_SHOWN]]
        more = ", ..." if len(use.shapes) > _SHAPES_SHOWN else ""
        table.add_row(
            _use(use),
            str(use.count),
            ", ".join(use.dtypes),
            ", ".join(shapes) + more,
            f"{use.bytes:,}",
        )
    return table


def _use(of: TensorRecord | TensorUse) -> str:
    return of.role or f"not read: {of.skipped}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape) or "scalar"
