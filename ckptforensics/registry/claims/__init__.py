"""What a model says of itself: its card, its configuration, its adapter, its tokenizer."""
