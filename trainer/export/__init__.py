"""Trained weights for other programs: export chooses, onnx_graph writes a graph, names other programs' names."""
