"""Federated learning: methods as pure functions, and one engine for real and simulated nodes."""
