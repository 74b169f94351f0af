"""Which models share a training run, how they are related, and what shows it."""
