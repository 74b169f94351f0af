"""The command line: options in, one documented function called, one document rendered."""
