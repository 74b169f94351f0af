"""Weight files: what their headers say, and nothing executed."""
