"""What rounding does to a checkpoint: what to keep from it, and the weights as it leaves them."""
