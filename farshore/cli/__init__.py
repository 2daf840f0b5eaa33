"""The command line: one module per command, imported light so that ``farshore --help`` answers at once."""
