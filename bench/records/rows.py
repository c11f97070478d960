"""What the words of a benchmark mean: its rows and its scenarios, one line each, for terminal, help and page alike.

Here and not in the classes of `fastcnn.bench.peers`: `fastcnn bench --help` reads it without importing torch, and the page of a stored
result without any of the runtimes.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

# Short enough for 80 columns beside the longest name. In the order of the table that `fastcnn.bench.peers.table` makes of them.
ROWS: Mapping[str, str] = {
    "eager": "PyTorch, the model as it is",
    "eager_channels_last": "PyTorch, everything channels_last",
    "eager_cuda_graph": "eager_channels_last as one CUDA graph",
    "torchscript_frozen": "TorchScript, traced and frozen",
    "torch_compile": "torch.compile with its defaults",
    "torch_compile_freezing": "torch.compile, channels_last, frozen weights",
    "torch_compile_max_autotune": "torch.compile, max-autotune with CUDA graphs",
    "onnxruntime": "ONNX Runtime on torch.onnx.export's file",
    "onnxruntime_cuda": "ONNX Runtime (CUDA) on torch.onnx.export's file",
    "onnxruntime_tensorrt": "TensorRT provider on torch.onnx.export's file",
    "openvino": "OpenVINO on torch.onnx.export's file",
    "ncnn": "ncnn on what pnnx makes of the traced model",
    "fastcnn_file_onnxruntime": "ONNX Runtime on fastcnn export's file",
    "fastcnn_file_onnxruntime_cuda": "ONNX Runtime (CUDA) on fastcnn export's file",
    "fastcnn_file_tensorrt": "TensorRT provider on fastcnn export's file",
    "fastcnn_file_openvino": "OpenVINO on fastcnn export's file",
    "fastcnn_int8_onnxruntime": "ONNX Runtime on fastcnn export's file in 8 bits",
    "fastcnn_int8_openvino": "OpenVINO on fastcnn export's file in 8 bits",
    "fastcnn_bf16_torch": "fastcnn_torch in bfloat16",
    "fastcnn_bf16_openvino": "fastcnn_openvino in bfloat16",
    "fastcnn_torch": 'fastcnn.optimize with backend "torch"',
    "fastcnn_onnxruntime": 'fastcnn.optimize with backend "onnxruntime"',
    "fastcnn_openvino": 'fastcnn.optimize with backend "openvino"',
    "fastcnn_ncnn": 'fastcnn.optimize with backend "ncnn"',
    "fastcnn_triton": 'fastcnn.optimize with backend "triton"',
    "fastcnn": "fastcnn.optimize, which chose its backend",
}

# What people call the precisions of rows.
PRECISION_TITLES: Mapping[str, str] = {"fp32": "float32", "tf32": "TF32", "fp16": "float16", "bf16": "bfloat16", "int8": "INT8"}

# The row that stands for fastcnn where one has to: what its user gets without choosing.
OUR_ROW = "fastcnn"

# As MLPerf Inference names them.
SCENARIOS: Mapping[str, str] = {
    "single-stream": "one picture after the other",
    "offline": "whole batches, one after the other",
}

# A column of the table, in the words of its heading.
SET_UP = ("set-up", "from the model to the first answer, in a process that has everything imported")


def words_of(rows: Container[str], scenarios: Container[str]) -> dict[str, str]:
    """What the names of these rows and scenarios mean, as far as this release knows them; nothing where it knows none of the rows."""
    known = {name: meaning for name, meaning in ROWS.items() if name in rows}
    return known and {**known, **{name: meaning for name, meaning in SCENARIOS.items() if name in scenarios}, SET_UP[0]: SET_UP[1]}
