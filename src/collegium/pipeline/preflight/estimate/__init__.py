"""The cost of a run, measured by a short trial of the run itself in a folder that is thrown away."""
