"""Measurements that the documentation quotes; run as modules, never collected as tests."""
