"""Tables for people, a file a kind of document."""
