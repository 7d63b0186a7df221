"""Parts of an objective: terms on inner states and across vocabularies, and weights among terms."""
