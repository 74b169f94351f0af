"""Leading singular triplets and selected eigenpairs of matrix-free operators."""

from ckptforensics.spectra.eigen import Eigenpair, eigenpairs
from ckptforensics.spectra.krylov import Triplets, singular_triplets

__all__ = ["Eigenpair", "Triplets", "eigenpairs", "singular_triplets"]
