"""JSON Schemas of the result documents, made from the same classes that write them.

python -m ckptforensics.results.schemas docs/schemas
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ckptforensics.results.files import write_atomically
from ckptforensics.results.kinds import DOCUMENTS

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(kind: str) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the documents of this kind, as they are written.

    Every key a document is written with is required, and no other is allowed.

    Parameters
    ----------
    kind : a key of `DOCUMENTS`
    """
    made = DOCUMENTS[kind].model_json_schema(mode="serialization")
    definitions = {name: _strict(part) for name, part in made.get("$defs", {}).items()}
    return {
        "$schema": _DIALECT,
        **_strict(made),
        "title": f"ckptforensics {kind} document",
        "$defs": definitions,
    }


def schema_text(kind: str) -> str:
    """The schema as text, the same for the same classes, ending in a newline."""
    return json.dumps(schema(kind), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_schemas(folder: str | Path) -> list[Path]:
    """Write `KIND.schema.json` for every kind of document; OutputError if that fails."""
    target = Path(folder)
    files = []
    for kind in DOCUMENTS:
        text = schema_text(kind)

        def write(file: Path, text: str = text) -> None:
            file.write_text(text, encoding="utf-8")

        files.append(target / f"{kind}.schema.json")
        write_atomically(files[-1], write)
    return files


def _strict(model: dict[str, Any]) -> dict[str, Any]:
    """The schema of one class with every key required: a saved document leaves out nothing."""
    # Defaults and the titles made up from field names say nothing to a reader of documents.
    noise = ("default", "title")
    properties = {
        name: {key: value for key, value in field.items() if key not in noise}
        for name, field in model["properties"].items()
    }
    return {**model, "properties": properties, "required": list(properties)}


def main() -> None:
    """Command line of the module: write the schemas to the directory it is given."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m ckptforensics.results.schemas DIR")
    for file in write_schemas(sys.argv[1]):
        sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
