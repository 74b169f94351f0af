"""What would hide a copy from all criteria of agreement, and is not what training makes."""

from __future__ import annotations

from ckptforensics.compute.threads import in_threads
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.renumbered import may_be_renumbered
from ckptforensics.lineage.correspondence.unwritten import unwritten
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair


def what_hides(pair: Pair) -> tuple[str, ...]:
    """Why the silence of all criteria shows nothing on this pair, in words; empty where it does.

    Raises
    ------
    CkptError
        if weights cannot be read.
    """
    found = []
    if may_be_renumbered(pair):
        found.append(
            "tokens were matched by id, since a vocabulary is missing, and the embeddings may be "
            "the same ones in another order: a copy that was renumbered would look the same here"
        )
    # LAPACK and large products of one model keep one core busy.
    found += [words for words in in_threads(padded, pair.models) if words is not None]
    return tuple(found)


def padded(model: Model) -> str | None:
    """That the model's residual stream has directions for hiding, in words; None if it has not."""
    try:
        count = unwritten(model)
    except NotApplicable as problem:
        return f"whether the residual stream of {model.name} was padded is not known: {problem}"
    if not count:
        return None
    return (
        f"no layer of {model.name} writes to {count} of the {model.hidden_size} directions of its "
        "residual stream, which was padded or cut: what reads there can be filled with noise, and "
        "a copy that is hidden so would look the same here"
    )
