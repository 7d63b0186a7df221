"""Before any training: whether these teachers can help on this text, and what the run will take."""
