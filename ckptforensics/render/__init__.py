"""Renderers: a result document in, text out. They see documents and nothing else."""

from ckptforensics.render.text import FORMATS, render, render_several

__all__ = ["FORMATS", "render", "render_several"]
