"""Many models: where they are kept, what they claim, what their weights show, what is wrong."""
