"""What the words of a benchmark mean: its rows and its scenarios, one line each, for terminal, help and page alike.

Here and not in the classes of `fastcnn.bench.peers`: `fastcnn bench --help` reads it without importing torch, and the page of a stored
result without any of the runtimes.
"""

from __future__ import annotations

from collections.abc import Mapping

# In the order of the table that `fastcnn.bench.peers.table` makes of them.
ROWS: Mapping[str, str] = {
    "eager": "PyTorch, the model as it is",
    "eager_channels_last": "PyTorch, weights and activations channels_last",
    "eager_cuda_graph": "eager_channels_last, its launches replayed as one CUDA graph",
    "torchscript_frozen": "TorchScript, traced and frozen",
    "torch_compile": "torch.compile with its defaults",
    "torch_compile_freezing": "torch.compile, channels_last, weights frozen into the code",
    "torch_compile_max_autotune": "torch.compile in mode max-autotune: CUDA graphs, channels_last, frozen weights",
    "onnxruntime": "ONNX Runtime, the file that torch.onnx.export writes",
    "onnxruntime_cuda": "ONNX Runtime's CUDA provider, the file that torch.onnx.export writes",
    "onnxruntime_tensorrt": "ONNX Runtime's TensorRT provider, the file that torch.onnx.export writes",
    "openvino": "OpenVINO, the file that torch.onnx.export writes",
    "fastcnn_file_onnxruntime": "ONNX Runtime, the file that `fastcnn export` writes",
    "fastcnn_file_onnxruntime_cuda": "ONNX Runtime's CUDA provider, the file that `fastcnn export` writes",
    "fastcnn_file_tensorrt": "ONNX Runtime's TensorRT provider, the file that `fastcnn export` writes",
    "fastcnn_file_openvino": "OpenVINO, the file that `fastcnn export` writes",
    "fastcnn_torch": 'fastcnn.optimize(model, x, backend="torch")',
    "fastcnn_onnxruntime": 'fastcnn.optimize(model, x, backend="onnxruntime")',
    "fastcnn_openvino": 'fastcnn.optimize(model, x, backend="openvino")',
    "fastcnn_triton": 'fastcnn.optimize(model, x, backend="triton")',
    "fastcnn": "fastcnn.optimize(model, x): the backend that it measured to be the fastest",
}

# The row that stands for fastcnn where one has to: what its user gets without choosing.
OUR_ROW = "fastcnn"

# As MLPerf Inference names them.
SCENARIOS: Mapping[str, str] = {
    "single-stream": "one picture after the other",
    "offline": "whole batches, one after the other",
}

SET_UP = "from the model to the first answer, in a process that has everything imported"
