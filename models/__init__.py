"""Networks shared by several methods, flat parameters, state arrays, ONNX export. Imports layers 0-1."""
