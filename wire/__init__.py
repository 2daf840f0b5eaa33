"""Wire format: frames, tensor encodings, channels over gRPC or memory, link shaping. Imports ``core`` and ``proto``."""
