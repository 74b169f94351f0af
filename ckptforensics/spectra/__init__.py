"""Leading singular triplets and selected eigenpairs of matrix-free operators."""

from ckptforensics.spectra.eigen import Eigenpair, nearest_eigenpair
from ckptforensics.spectra.krylov import Triplets, joint_triplets, singular_triplets

__all__ = ["Eigenpair", "Triplets", "joint_triplets", "nearest_eigenpair", "singular_triplets"]
