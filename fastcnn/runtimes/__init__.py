"""One way to open a model in each runtime of others: which options, how many threads, and proof that the runtime does what it was told.

What runs an optimized module and what checks an exported file open it here, so that both meet the same runtime. ONNX Runtime and OpenVINO report to
their makers when they are imported; here that is off, for this process and without a file in the user's home. ncnn reports nothing.
"""
