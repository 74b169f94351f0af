"""What looks damaged in a model, in words."""

from __future__ import annotations

from ckptforensics.errors import one_line
from ckptforensics.results.records import DamageRecord, ModelRecord


def damage_lines(model: ModelRecord, most: int = 5) -> list[str]:
    """What looks damaged in a model, a sentence each; at most `most`, and then how many more."""
    lines = [_damage_line(record) for record in model.damage[:most]]
    if len(model.damage) > most:
        lines.append(f"and {len(model.damage) - most:,} more; JSON has all of them")
    return lines


def examined_line(model: ModelRecord) -> str | None:
    """How much was not looked at for damage; None where all was, or where nobody looked."""
    seen = model.examined
    if seen is None or not (seen.sampled or seen.not_read):
        return None
    parts = [f"{seen.whole:,} weights whole", f"a few pages of {seen.sampled:,}"]
    if not seen.sampled:
        del parts[1]
    if seen.not_read:
        parts.append(f"none of {seen.not_read:,}")
    return f"looked at for damage: {', '.join(parts)}"


def _damage_line(record: DamageRecord) -> str:
    said = _said(record)
    return said if record.level == "finding" else f"{said}; unused tokens may be the reason"


def _said(record: DamageRecord) -> str:
    name = one_line(record.tensor)
    if record.what == "identity":
        return f"layer {record.layer} ({name}) adds nothing: output and down are zero"
    assert record.rows is not None
    assert record.bytes is not None
    first, last = record.rows
    rows = f"row {first:,}" if first == last else f"rows {first:,} to {last:,}"
    where = f"({one_line(record.file)}, bytes {record.bytes[0]:,} to {record.bytes[1]:,})"
    if record.what == "zeros":
        more = f", the longest of {record.count:,} stretches," if record.count > 1 else ""
        holds = "holds" if first == last else "hold"
        return f"{name}: {rows} {holds} zeros{more} {where}"
    if record.what == "not-finite":
        many = "1 element is" if record.count == 1 else f"{record.count:,} elements are"
        return f"{name}: {many} NaN or infinite, in {rows} {where}"
    if record.what == "constant":
        return f"{name}: all elements are one number {where}"
    many = "1 row equals another" if record.count == 1 else f"{record.count:,} rows equal others"
    return f"{name}: {many} exactly, {last:,} equals {first:,} {where}"
