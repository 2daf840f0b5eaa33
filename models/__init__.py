"""Networks that several methods share, flat parameters, state as arrays, ONNX export. Imports layers 0-1."""
