"""Whether these teachers can help on this text, and what a run will take, by a trial of it."""
