"""Documents as JSON or as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import StringIO
from types import MappingProxyType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ckptforensics.results import (
    BeginTokenRecord,
    CacheDocument,
    Document,
    FamiliesDocument,
    InspectDocument,
    LayersDocument,
    ModelRecord,
    NormsDocument,
    SignatureDocument,
    Skipped,
)

FORMATS = ("table", "json")

_SUPER_WEIGHTS_SHOWN = 5
_TOKENS_SHOWN = 8
# Width of tables written to a file or pipe, where nothing says how wide the reader's screen is.
_PIPE_WIDTH = 100
_NARROWEST_NAMES = 12
_UNBOUNDED = 10_000
_COLUMN_PADDING = 3


def render(
    document: Document,
    form: str = "table",
    *,
    verbose: bool = False,
    width: int | None = None,
    color: bool = False,
) -> str:
    """The document as text ending in a newline.

    Parameters
    ----------
    form : one of `FORMATS`
    verbose : show every row instead of the noteworthy ones (tables only)
    width : of the terminal; None where there is none
    color : use ANSI styles
    """
    if form == "json":
        return document.model_dump_json(indent=2) + "\n"
    console = _console(width, color=color)
    _TABLES[type(document)](console, document, verbose)
    return _text(console)


def render_several(documents: Iterable[SignatureDocument]) -> str:
    """Signatures of several models as a table, a row each."""
    console = _console(None, color=False)
    table = _table("fingerprint", "explosion", "decay", "model")
    for document in documents:
        explosion, decay = (
            ", ".join(map(str, layers)) or "none found"
            for layers in (document.explosion, document.decay)
        )
        name = _plain(document.model.path)
        table.add_row(document.fingerprint or "none", explosion, decay, name)
    _print_table(console, table)
    return _text(console)


def _console(width: int | None, *, color: bool) -> Console:
    return Console(
        file=StringIO(),
        width=width or _PIPE_WIDTH,
        force_terminal=color,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )


def _text(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _signature(console: Console, document: SignatureDocument, verbose: bool) -> None:
    _heading(console, document.model)
    _fact(console, "fit", document.fit)
    _fact(console, "fingerprint", document.fingerprint or "none: of some layers only", "bold")
    _layer_facts(console, document)
    table = _table("layer", "prefix", "s1", "s2", "gap", "residual", "u1: largest coordinates")
    marks = _marks(document.explosion, document.decay)
    for row in document.layers:
        table.add_row(
            str(row.layer),
            _plain(row.prefix),
            _number(row.sigma[0]),
            _number(row.sigma[1]),
            f"{row.gap:.2f}",
            f"{row.residual:.0e}",
            _coordinates(row.direction_top[: 5 if verbose else 3]),
            style=marks.get(row.layer, ("", ""))[1],
        )
    _print_table(console, table)
    _skipped(console, document.skipped)


def _layers(console: Console, document: LayersDocument, verbose: bool) -> None:
    _heading(console, document.model)
    _fact(console, "fit", document.fit)
    _layer_facts(console, document)
    if document.begin_token is not None:
        _fact(console, "begin token", _begin_token(document.begin_token))
    for row in document.layers:
        if row.label is None and not verbose:
            continue
        strength = "" if row.strength is None else f", strength {row.strength:.2f}"
        style = _marks(document.explosion, document.decay).get(row.layer, ("", ""))[1]
        name = row.label or "no label"
        console.print(
            Text(f"\nlayer {row.layer} ({_plain(row.prefix)}): {name}{strength}", style=style),
            soft_wrap=True,
        )
        lines = list(row.evidence)
        if row.response is not None:
            at = f"u: {row.response.direction}, c = {_number(row.response.size)}"
            lines.append(
                f"true block at +-c u ({at}): adds {row.response.plus:+.4g} and "
                f"{row.response.minus:+.4g} along u"
            )
        strongest = sorted(row.experts, key=lambda e: -e.trigger_norm)
        lines.extend(
            f"{expert.name}: mean weight {expert.weight:.3f}, s1 {_number(expert.sigma)}, "
            f"answers its trigger with norm {_number(expert.trigger_norm)}"
            for expert in strongest[: None if verbose else 3]
        )
        if row.eigenvalue is not None:
            imag = f" +- {row.eigenvalue.imag:.4g}i" if row.eigenvalue.imag else ""
            lines.append(
                f"eigenvalue of R nearest u: {row.eigenvalue.real:+.4g}{imag} at "
                f"{row.eigenvalue.angle_deg:.1f} degrees"
            )
        for line in lines:
            console.print(Text(f"  - {line}"), soft_wrap=True)
    shown = document.super_weights[: None if verbose else _SUPER_WEIGHTS_SHOWN]
    console.print("\nstrongest entries of the down projections (super-weight candidates, ranked)")
    table = _table("layer", "tensor", "row", "column", "value", "amplitude")
    for weight in shown:
        table.add_row(
            str(weight.layer),
            _plain(weight.tensor),
            str(weight.row),
            str(weight.column),
            f"{weight.value:.4g}",
            _number(weight.amplitude),
        )
    _print_table(console, table)
    if document.accumulated:
        console.print("\naccumulated: u1 of the product of all layers so far")
        table = _table("layer", "log10 s1", "gap", "to u1 of L", "u1: largest coordinates")
        for product in document.accumulated:
            table.add_row(
                str(product.layer),
                f"{product.log10_sigma:.3f}",
                _number(product.gap),
                f"{product.angle_deg:.1f} deg",
                _coordinates(product.direction_top[: 5 if verbose else 3]),
            )
        _print_table(console, table)
    _skipped(console, document.skipped)


def _norms(console: Console, document: NormsDocument, verbose: bool) -> None:
    _heading(console, document.model)
    count = len(document.tokens)
    _fact(console, "single tokens", f"{count:,}" + ("" if document.attention else ", no attention"))
    shown = min(count, _TOKENS_SHOWN if verbose else 1)
    names = [_token_name(t) for t in document.tokens[:shown]]
    table = _table("layer", *names, "median", "minimum", "maximum")
    for layer in range(len(document.median) + 1):
        if layer == 0:
            column, median = list(document.embedding_norms), _median(document.embedding_norms)
        else:
            column = [row[layer - 1] for row in document.norms]
            median = document.median[layer - 1]
        table.add_row(
            str(layer) if layer else "embedding",
            *[_number(n) for n in column[:shown]],
            _number(median),
            _number(min(column)),
            _number(max(column)),
        )
    _print_table(console, table)
    _skipped(console, document.skipped)


def _inspect(console: Console, document: InspectDocument, verbose: bool) -> None:
    _heading(console, document.model)
    _fact(console, "covers", document.description)
    _fact(
        console,
        "block",
        f"{document.residual}, {document.norm} norm (eps {document.epsilon:g}), "
        f"{document.activation}, "
        + ("no FFN" if document.ffn_width is None else f"FFN width {document.ffn_width:,}"),
    )
    _fact(
        console,
        "heads",
        f"{document.num_heads} of width {document.head_dim}, {document.num_kv_heads} key-value"
        if document.num_heads
        else "no attention is analysed",
    )
    vocabulary = document.vocabulary_size
    bos = document.bos_token_id
    _fact(
        console,
        "vocabulary",
        ("no embeddings" if vocabulary is None else f"{vocabulary:,}")
        + ("" if bos is None else f", begin-of-sequence {bos}"),
    )
    _fact(
        console,
        "parameters",
        f"{document.parameters:,}, of which {document.parameters_used:,} are read",
    )
    _skipped(console, document.skipped)
    # Quantized weights are not in the files: their parts are.
    made = {t.part_of for t in document.tensors}
    files = _table("file", "bytes", "tensors", "header SHA-256")
    for file in document.model.files:
        stored = (t for t in document.tensors if t.part_of or t.name not in made)
        tensors = sum(t.file == file.name for t in stored)
        files.add_row(_plain(file.name), f"{file.bytes:,}", str(tensors), file.header_sha256[:16])
    console.print(files)
    if verbose:
        table = _table("tensor", "dtype", "shape", "use")
        for t in document.tensors:
            use = t.role or f"not read: {t.skipped}"
            if t.part_of is not None:  # the record above is the weight
                use = "stored part"
            table.add_row(_plain(t.name), t.dtype, _shape(t.shape), use)
        _print_table(console, table)
        return
    table = _table("use", "tensors", "dtypes", "shapes", "bytes")
    groups: dict[tuple[bool, str], list[Any]] = {}
    for t in document.tensors:
        if t.part_of is not None:
            continue
        key = (t.role is None, t.role or f"not read: {t.skipped}")
        groups.setdefault(key, []).append(t)
    for (_, use), members in sorted(groups.items(), key=lambda item: item[0][0]):
        shapes = list(dict.fromkeys(_shape(t.shape) for t in members))
        table.add_row(
            use,
            str(len(members)),
            ", ".join(dict.fromkeys(t.dtype for t in members)),
            ", ".join(shapes[:3]) + (", ..." if len(shapes) > 3 else ""),
            f"{sum(t.bytes for t in members):,}",
        )
    _print_table(console, table)


def _families(console: Console, document: FamiliesDocument, verbose: bool) -> None:
    table = _table("family", "model_type", "GGUF", "verified with " + document.oracle)
    for row in document.families:
        verified = ", ".join(row.verified_by) if verbose else f"{len(row.verified_by)} cases"
        table.add_row(
            row.name,
            ", ".join(row.model_types),
            ", ".join(row.gguf_architectures),
            verified if row.verified_by else "not verified",
        )
    _print_table(console, table)


def _cache(console: Console, document: CacheDocument, verbose: bool) -> None:
    where = "nothing is kept: CKPT_CACHE is empty" if document.path is None else document.path
    _fact(console, "signatures", where)
    _fact(console, "entries", f"{document.entries:,} of at most {document.most_entries:,}")
    _fact(console, "unfinished", f"{document.unfinished:,}")
    _fact(console, "bytes", f"{document.bytes:,} of at most {document.most_bytes:,}")


_TABLES: MappingProxyType[type[Document], Callable[[Console, Any, bool], None]] = MappingProxyType(
    {
        SignatureDocument: _signature,
        LayersDocument: _layers,
        NormsDocument: _norms,
        InspectDocument: _inspect,
        FamiliesDocument: _families,
        CacheDocument: _cache,
    }
)


def _heading(console: Console, model: ModelRecord) -> None:
    source = {"config": "config.json", "gguf": "GGUF metadata", "inferred": "INFERRED from names"}
    _fact(console, "model", model.path)
    if model.base is not None:
        _fact(console, "base", f"{model.base} (the adapter {model.path} merged onto it)")
    _fact(
        console,
        "family",
        f"{model.family} ({source[model.family_source]}), {model.num_layers} layers, "
        f"width {model.hidden_size:,}",
    )
    for note in model.notes:
        _fact(console, "assumed", note, "yellow")


def _layer_facts(console: Console, document: SignatureDocument | LayersDocument) -> None:
    direction = document.direction
    # Without tokens to follow, nothing found says little.
    partly = any(row.what == "single-token rollout" for row in document.skipped)
    none = "none found (rollout skipped or incomplete)" if partly else "none found"
    for name, layers, style in (
        ("explosion", document.explosion, "red"),
        ("decay", document.decay, "cyan"),
    ):
        _fact(console, name, ", ".join(map(str, layers)) or none, style if layers else "")
    where = (
        f"tokens after layer {direction.layer}"
        if direction.source == "rollout"
        else "most common u1; no token was seen to follow it"
    )
    _fact(console, "direction", f"{_coordinates(direction.top)} ({where})")


def _fact(console: Console, name: str, value: str, style: str = "") -> None:
    console.print(Text(f"{name:<14}").append(_plain(value), style=style), soft_wrap=True)


def _begin_token(record: BeginTokenRecord) -> str:
    at = f"norm {_number(record.peak_norm)} after layer {record.peak_layer}"
    if record.growth == "like the others":
        return f"token {record.token} is like the others ({at})"
    how = (
        f"one layer adds {record.largest_gain:.0%} of it"
        if record.growth == "abrupt"
        else f"gradually: no layer adds more than {record.largest_gain:.0%} of it"
    )
    return (
        f"token {record.token} stands out: {at}, up to {record.largest_ratio:.3g} times the "
        f"ordinary tokens' median; {how}"
    )


def _skipped(console: Console, skipped: Iterable[Skipped]) -> None:
    for row in skipped:
        _fact(console, "skipped", f"{row.what}: {row.reason}", "yellow")


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    words = {
        *("family", "model_type", "GGUF", "prefix", "tensor", "use", "file"),
        *("fingerprint", "explosion", "decay", "model"),
        *("dtype", "dtypes", "shape", "shapes", "header SHA-256"),
    }
    for name in columns:
        # Names fold rather than vanish in a narrow terminal; numbers must not.
        if name in words or name.startswith("verified"):
            table.add_column(name, overflow="fold")
        else:
            justify: JustifyMethod = "left" if ":" in name else "right"
            table.add_column(name, justify=justify, no_wrap=True)
    return table


def _print_table(console: Console, table: Table) -> None:
    """Print a table at least so wide that no number is cut; a narrow terminal wraps its lines."""
    for column in table.columns:
        longest = max(len(str(cell)) for cell in (column.header, *column.cells))
        column.min_width = longest if column.no_wrap else min(longest, _NARROWEST_NAMES)
    natural = Measurement.get(console, console.options.update(max_width=_UNBOUNDED), table)
    needed = sum((column.min_width or 0) + _COLUMN_PADDING for column in table.columns)
    terminal = console.width
    console.width = max(min(needed, natural.maximum), min(natural.maximum, terminal))
    console.print(table)
    console.width = terminal


def _marks(explosion: tuple[int, ...], decay: tuple[int, ...]) -> dict[int, tuple[str, str]]:
    return {
        **dict.fromkeys(explosion, ("explosion", "red")),
        **dict.fromkeys(decay, ("decay", "cyan")),
    }


def _plain(text: str) -> str:
    """Names come from the input: nothing in them may reach the terminal as a control sequence."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _coordinates(top: tuple[tuple[int, float], ...]) -> str:
    return "  ".join(f"{index}: {value:+.3f}" for index, value in top)


def _token_name(token: int | None) -> str:
    return "random vector" if token is None else f"token {token}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape) or "scalar"


def _median(values: tuple[float, ...]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
