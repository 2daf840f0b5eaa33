"""Records of runs: run directory, run store, ledger, metrics, events, checkpoints, streams."""
