"""The paper's table and figures, run end to end: see `collegium.reproduce.command`."""
