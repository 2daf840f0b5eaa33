"""Round-trip time and throughput between the server and its nodes, measured over a run's own channels."""
