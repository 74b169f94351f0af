"""Sketches: small records of models, by which a hidden copy is found among a million."""
