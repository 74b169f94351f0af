"""The running model: what the weight-only rooms predict, measured with torch and transformers."""
