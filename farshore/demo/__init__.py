"""The demo: a server and two edges as real processes on this machine, with accuracy and communication volume."""
