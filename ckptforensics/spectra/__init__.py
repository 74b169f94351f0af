"""Leading singular triplets and selected eigenpairs of matrix-free operators."""

from ckptforensics.spectra.eigen import Eigenpair, nearest_eigenpair
from ckptforensics.spectra.krylov import Triplets, singular_triplets

__all__ = ["Eigenpair", "Triplets", "nearest_eigenpair", "singular_triplets"]
