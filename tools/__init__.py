"""Makers of fixtures and of generated pages of docs/; run from a checkout, not installed."""
