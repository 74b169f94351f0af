"""Lineage: whether checkpoints share a training run, how they are related, and how sure that is."""
