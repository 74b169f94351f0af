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


def _damage_line(record: DamageRecord) -> str:
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
        return f"{name}: {rows} hold zeros{more} {where}"
    if record.what == "constant":
        return f"{name}: all elements are one number {where}"
    many = "1 row equals another" if record.count == 1 else f"{record.count:,} rows equal others"
    return f"{name}: {many} exactly, {last:,} equals {first:,} {where}"
