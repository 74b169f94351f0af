"""Signatures made before and signings under way, in the user's cache directory."""
