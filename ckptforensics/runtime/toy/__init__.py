"""Small models trained here, in which extreme tokens can be watched as they appear."""
