"""The embedded default: real teachers and text that install as packages."""
