"""A local web page over a catalog, which reads and never writes."""
