"""A document as JSON, the text that -o saves."""

from __future__ import annotations

from ckptforensics.render.view import View
from ckptforensics.results import Document, document_text


def document_json(document: Document, view: View) -> str:
    """The document as JSON; the view changes nothing."""
    return document_text(document)
