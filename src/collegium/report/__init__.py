"""A run folder as one page for people. No torch here, so that it is made in seconds."""
