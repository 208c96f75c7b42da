"""Trained weights for other programs: export writes a file, onnx_graph an ONNX graph, push a model on the hub."""
