"""Split engine: transformer blocks moved to a server (``farshore.split``), and factorizations shared with methods."""
