"""Where models are kept, each kind of store in a file; what it says of them is a claim."""
