"""Several models at once, each in a process of its own, within a memory budget."""
