"""Where arithmetic runs: threads, products of large matrices, BF16 as stored, reused memory."""
