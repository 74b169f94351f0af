"""The rules: what is wrong with a model, each with a page that explains it."""
