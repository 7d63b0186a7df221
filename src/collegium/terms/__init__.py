"""What an objective is made of: terms, weights among them, and what moves while they are trained."""
