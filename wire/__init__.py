"""Tensors to frames and back, encodings, channels over gRPC or memory, link shaping. Imports ``core`` and ``proto`` only."""
