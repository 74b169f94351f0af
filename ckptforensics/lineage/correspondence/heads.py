"""What the values and the output of a head do together, whatever basis they are in."""

from __future__ import annotations

import numpy as np

from ckptforensics.arrays import Doubles, Floats
from ckptforensics.compute.threads import in_threads
from ckptforensics.forward import fold_norm
from ckptforensics.layers import Attention

# Singular values below this share of a head's largest are rounding of float32 products.
_SMALLEST = 3e-3
# What is added to a Gram matrix, as a share of its mean eigenvalue: far below `_SMALLEST` squared.
_JITTER = 1e-7


def head_spectra(attention: Attention) -> Doubles:
    """Log singular values of each head's W_O W_V, less their mean: (heads, values).

    Which basis the residual stream, the values and the heads are in, their order, and factors do
    not enter. Heads that write nothing are left out.
    """
    value = fold_norm(attention.value.matrix, attention.norm if attention.latent is None else None)
    if attention.latent is not None:
        inner = fold_norm(attention.value.matrix, attention.latent_norm)
        value = inner @ fold_norm(attention.latent.matrix, attention.norm)
    width = attention.head_dim
    output = attention.output.weight
    heads = output.shape[1] // width
    grams = in_threads(_gram, np.split(value, value.shape[0] // width))

    def spectrum(head: int) -> Doubles | None:
        # sigma(O V) are the roots of the eigenvalues of R' (V V') R, where O'O = R R'.
        own = _gram(output[:, head * width : (head + 1) * width].T)
        if not own.any():
            return None
        root = _root(own)
        squares = np.linalg.eigvalsh(root.T @ grams[head // attention.repeats] @ root)[::-1]
        sizes = np.sqrt(np.maximum(squares, 0))
        if sizes[0] <= 0:
            return None
        logs = np.log(np.maximum(sizes, _SMALLEST * sizes[0]))
        return logs - logs.mean()

    rows = [row for row in in_threads(spectrum, range(heads)) if row is not None]
    return np.array(rows).reshape(len(rows), width)


def _root(gram: Doubles) -> Doubles:
    """R with R R' = gram; of one whose rank is not full by its eigenvectors, which takes longer."""
    width = len(gram)
    try:
        return np.linalg.cholesky(gram + np.eye(width) * (_JITTER * np.trace(gram) / width))
    except np.linalg.LinAlgError:
        size, basis = np.linalg.eigh(gram)
        return basis * np.sqrt(np.maximum(size, 0))


def _gram(rows: Floats) -> Doubles:
    return np.asarray(rows @ rows.T, np.float64)
