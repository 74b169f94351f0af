"""The experiments of the paper and of later ones, each a function that returns a document."""
