"""Pure functions: no modules, no configuration, no input or output."""
