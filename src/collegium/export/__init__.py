"""A student in the formats of other programs, each measured by reading it back."""
