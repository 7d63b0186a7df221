"""What sub-commands do, once the command line has been read."""
