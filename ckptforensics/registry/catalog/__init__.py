"""The catalog: one SQLite file, and the signatures' arrays in a folder beside it."""
