"""The true, nonlinear block: norms, activations, routing, branches, embedding."""
