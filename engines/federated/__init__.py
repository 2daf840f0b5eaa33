"""Federated learning: methods as pure functions, one engine for real nodes and simulated ones."""
