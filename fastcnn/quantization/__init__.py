"""From a passed graph to one whose convolutions multiply 8-bit numbers: ranges observed on pictures, rounding inserted in the graph, accuracy judged.

The rounding is PyTorch's own `quantized_decomposed` operations, so that an engine, an exporter and eager PyTorch see one and the same graph.
"""
