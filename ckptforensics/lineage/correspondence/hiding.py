"""What would hide a copy from all criteria of agreement, and is not what training makes."""

from __future__ import annotations

from ckptforensics.lineage.correspondence.renumbered import may_be_renumbered
from ckptforensics.lineage.correspondence.unwritten import unwritten
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
    for model in pair.models:
        count = unwritten(model)
        if count:
            found.append(
                f"no layer of {model.name} writes to {count} of the {model.hidden_size} directions "
                "of its residual stream, which was padded or cut: what reads there can be filled "
                "with noise, and a copy that is hidden so would look the same here"
            )
    return tuple(found)
