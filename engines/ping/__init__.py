"""Ping: round-trip time and throughput between the server and its nodes, through everything that a real run uses."""
