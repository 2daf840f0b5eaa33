"""The command line: one module per command, each cheap to import so that ``farshore --help`` starts fast."""
