"""Documents as JSON or as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.text import Text

from ckptforensics.errors import UsageError, one_line
from ckptforensics.render.console import (
    fact,
    make_console,
    make_table,
    number,
    print_table,
    text_of,
)
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
# Of a comparison alone.
COMPARISON_FORMATS = ("csv", "html")

_SUPER_WEIGHTS_SHOWN = 5
_TOKENS_SHOWN = 8


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
    form : one of `FORMATS`, or of `COMPARISON_FORMATS` for a comparison
    verbose : show every row instead of the noteworthy ones (tables only)
    width : of the terminal; None where there is none
    color : use ANSI styles

    Raises
    ------
    UsageError
        if the document has no such form.
    """
    if form == "json":
        return document.model_dump_json(indent=2) + "\n"
    if form != "table":
        return _spreadsheet_or_page(document, form)
    console = make_console(width, color=color)
    _TABLES.get(type(document), _comparison)(console, document, verbose)
    return text_of(console)


def _spreadsheet_or_page(document: Document, form: str) -> str:
    from ckptforensics.results import ComparisonDocument

    if not isinstance(document, ComparisonDocument):
        kind = getattr(document, "kind", "other")
        raise UsageError(f"{form} is a format of 'ckpt compare': this is a {kind} document")
    # Rarely asked for, and other commands should start at once.
    if form == "csv":
        from ckptforensics.render.tables_csv import comparison_csv

        return comparison_csv(document)
    from ckptforensics.render.html import comparison_html

    return comparison_html(document)


def render_several(documents: Iterable[SignatureDocument]) -> str:
    """Signatures of several models as a table, a row each."""
    console = make_console(None, color=False)
    table = make_table("fingerprint", "explosion", "decay", "model")
    for document in documents:
        explosion, decay = (
            ", ".join(map(str, layers)) or "none found"
            for layers in (document.explosion, document.decay)
        )
        name = one_line(document.model.path)
        table.add_row(document.fingerprint or "none", explosion, decay, name)
    print_table(console, table)
    return text_of(console)


def _comparison(console: Console, document: Any, verbose: bool) -> None:
    from ckptforensics.render.comparison import comparison  # much that others do not need

    comparison(console, document, verbose)


def _signature(console: Console, document: SignatureDocument, verbose: bool) -> None:
    _heading(console, document.model)
    fact(console, "fit", document.fit)
    fact(console, "fingerprint", document.fingerprint or "none: of some layers only", "bold")
    _layer_facts(console, document)
    table = make_table("layer", "prefix", "s1", "s2", "gap", "residual", "u1: largest coordinates")
    marks = _marks(document.explosion, document.decay)
    for row in document.layers:
        table.add_row(
            str(row.layer),
            one_line(row.prefix),
            number(row.sigma[0]),
            number(row.sigma[1]),
            f"{row.gap:.2f}",
            f"{row.residual:.0e}",
            _coordinates(row.direction_top[: 5 if verbose else 3]),
            style=marks.get(row.layer, ("", ""))[1],
        )
    print_table(console, table)
    _skipped(console, document.skipped)


def _layers(console: Console, document: LayersDocument, verbose: bool) -> None:
    _heading(console, document.model)
    fact(console, "fit", document.fit)
    _layer_facts(console, document)
    if document.begin_token is not None:
        fact(console, "begin token", _begin_token(document.begin_token))
    for row in document.layers:
        if row.label is None and not verbose:
            continue
        strength = "" if row.strength is None else f", strength {row.strength:.2f}"
        style = _marks(document.explosion, document.decay).get(row.layer, ("", ""))[1]
        name = row.label or "no label"
        console.print(
            Text(f"\nlayer {row.layer} ({one_line(row.prefix)}): {name}{strength}", style=style),
            soft_wrap=True,
        )
        lines = list(row.evidence)
        if row.response is not None:
            at = f"u: {row.response.direction}, c = {number(row.response.size)}"
            lines.append(
                f"true block at +-c u ({at}): adds {row.response.plus:+.4g} and "
                f"{row.response.minus:+.4g} along u"
            )
        strongest = sorted(row.experts, key=lambda e: -e.trigger_norm)
        lines.extend(
            f"{expert.name}: mean weight {expert.weight:.3f}, s1 {number(expert.sigma)}, "
            f"answers its trigger with norm {number(expert.trigger_norm)}"
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
    table = make_table("layer", "tensor", "row", "column", "value", "amplitude")
    for weight in shown:
        table.add_row(
            str(weight.layer),
            one_line(weight.tensor),
            str(weight.row),
            str(weight.column),
            f"{weight.value:.4g}",
            number(weight.amplitude),
        )
    print_table(console, table)
    if document.accumulated:
        console.print("\naccumulated: u1 of the product of all layers so far")
        table = make_table("layer", "log10 s1", "gap", "to u1 of L", "u1: largest coordinates")
        for product in document.accumulated:
            table.add_row(
                str(product.layer),
                f"{product.log10_sigma:.3f}",
                number(product.gap),
                f"{product.angle_deg:.1f} deg",
                _coordinates(product.direction_top[: 5 if verbose else 3]),
            )
        print_table(console, table)
    _skipped(console, document.skipped)


def _norms(console: Console, document: NormsDocument, verbose: bool) -> None:
    _heading(console, document.model)
    count = len(document.tokens)
    fact(console, "single tokens", f"{count:,}" + ("" if document.attention else ", no attention"))
    shown = min(count, _TOKENS_SHOWN if verbose else 1)
    names = [_token_name(t) for t in document.tokens[:shown]]
    table = make_table("layer", *names, "median", "minimum", "maximum")
    for layer in range(len(document.median) + 1):
        if layer == 0:
            column, median = list(document.embedding_norms), _median(document.embedding_norms)
        else:
            column = [row[layer - 1] for row in document.norms]
            median = document.median[layer - 1]
        table.add_row(
            str(layer) if layer else "embedding",
            *[number(n) for n in column[:shown]],
            number(median),
            number(min(column)),
            number(max(column)),
        )
    print_table(console, table)
    _skipped(console, document.skipped)


def _inspect(console: Console, document: InspectDocument, verbose: bool) -> None:
    _heading(console, document.model)
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
    _skipped(console, document.skipped)
    # Quantized weights are not in the files: their parts are.
    made = {t.part_of for t in document.tensors}
    files = make_table("file", "bytes", "tensors", "header SHA-256")
    for file in document.model.files:
        stored = (t for t in document.tensors if t.part_of or t.name not in made)
        tensors = sum(t.file == file.name for t in stored)
        files.add_row(one_line(file.name), f"{file.bytes:,}", str(tensors), file.header_sha256[:16])
    console.print(files)
    if verbose:
        table = make_table("tensor", "dtype", "shape", "use")
        for t in document.tensors:
            use = t.role or f"not read: {t.skipped}"
            if t.part_of is not None:  # the record above is the weight
                use = "stored part"
            table.add_row(one_line(t.name), t.dtype, _shape(t.shape), use)
        print_table(console, table)
        return
    table = make_table("use", "tensors", "dtypes", "shapes", "bytes")
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
    print_table(console, table)


def _families(console: Console, document: FamiliesDocument, verbose: bool) -> None:
    table = make_table("family", "model_type", "GGUF", "verified with " + document.oracle)
    for row in document.families:
        verified = ", ".join(row.verified_by) if verbose else f"{len(row.verified_by)} cases"
        table.add_row(
            row.name,
            ", ".join(row.model_types),
            ", ".join(row.gguf_architectures),
            verified if row.verified_by else "not verified",
        )
    print_table(console, table)


def _cache(console: Console, document: CacheDocument, verbose: bool) -> None:
    where = "nothing is kept: CKPT_CACHE is empty" if document.path is None else document.path
    fact(console, "signatures", where)
    fact(console, "entries", f"{document.entries:,} of at most {document.most_entries:,}")
    fact(console, "unfinished", f"{document.unfinished:,}")
    fact(console, "bytes", f"{document.bytes:,} of at most {document.most_bytes:,}")


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
    fact(console, "model", model.path)
    if model.base is not None:
        fact(console, "base", f"{model.base} (the adapter {model.path} merged onto it)")
    fact(
        console,
        "family",
        f"{model.family} ({source[model.family_source]}), {model.num_layers} layers, "
        f"width {model.hidden_size:,}",
    )
    for note in model.notes:
        fact(console, "assumed", note, "yellow")


def _layer_facts(console: Console, document: SignatureDocument | LayersDocument) -> None:
    direction = document.direction
    # Without tokens to follow, nothing found says little.
    partly = any(row.what == "single-token rollout" for row in document.skipped)
    none = "none found (rollout skipped or incomplete)" if partly else "none found"
    for name, layers, style in (
        ("explosion", document.explosion, "red"),
        ("decay", document.decay, "cyan"),
    ):
        fact(console, name, ", ".join(map(str, layers)) or none, style if layers else "")
    where = (
        f"tokens after layer {direction.layer}"
        if direction.source == "rollout"
        else "most common u1; no token was seen to follow it"
    )
    fact(console, "direction", f"{_coordinates(direction.top)} ({where})")


def _begin_token(record: BeginTokenRecord) -> str:
    at = f"norm {number(record.peak_norm)} after layer {record.peak_layer}"
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
        fact(console, "skipped", f"{row.what}: {row.reason}", "yellow")


def _marks(explosion: tuple[int, ...], decay: tuple[int, ...]) -> dict[int, tuple[str, str]]:
    return {
        **dict.fromkeys(explosion, ("explosion", "red")),
        **dict.fromkeys(decay, ("decay", "cyan")),
    }


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
