"""Rounding a running model's linear modules, as published quantizers do, by hooks."""
