"""Teachers on disk: scored once, checked at every read, keyed by the text itself."""
