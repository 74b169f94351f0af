"""What changed between two related models, tensor by tensor, and what the changes say."""
