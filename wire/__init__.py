"""Tensors to frames and back, encodings, channels over gRPC or memory, link shaping; on ``core`` and ``proto`` only."""
