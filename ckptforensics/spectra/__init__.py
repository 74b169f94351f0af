"""Leading singular values, triplets and selected eigenpairs of matrix-free operators."""

from ckptforensics.spectra.eigen import Eigenpair, nearest_eigenpair
from ckptforensics.spectra.krylov import Triplets, joint_triplets, singular_triplets
from ckptforensics.spectra.leading import leading_values

__all__ = [
    "Eigenpair",
    "Triplets",
    "joint_triplets",
    "leading_values",
    "nearest_eigenpair",
    "singular_triplets",
]
