"""Teachers with other tokenizers: what bytes tokens stand for, and where two tokenizations meet."""
