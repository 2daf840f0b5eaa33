"""One folder per method; each works without the platform, and ``workload.py`` puts it on one. Imports floors 0-2."""
