"""The demonstration: a server and two edges as real processes on this machine, and what their conversation cost."""
