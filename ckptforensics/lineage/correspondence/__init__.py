"""Which layers, coordinates, neurons, heads and tokens of two models correspond."""
