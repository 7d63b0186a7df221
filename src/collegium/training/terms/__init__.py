"""What an objective is made of: terms on inner states and across vocabularies, weights among terms."""
