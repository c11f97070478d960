"""A stand-in for the package `cudnn`: it records the graph that it is told, and computes it in float32 on CPU memory."""

from __future__ import annotations

import ctypes
import enum
import json
import types

import torch
import torch.nn.functional as F

TORCH_TYPES = {"HALF": torch.float16, "BFLOAT16": torch.bfloat16, "FLOAT": torch.float32}

DataType = enum.Enum("DataType", list(TORCH_TYPES))
Mode = enum.Enum("Mode", ["A", "B", "FALLBACK"])
Note = enum.Enum("Note", ["TENSOR_CORE", "DOWN_CONVERT_INPUTS", "NONDETERMINISTIC"])


class NotSupportedError(Exception):
    pass


class FakeTensor:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __getattr__(self, name):
        if not name.startswith("set_"):
            raise AttributeError(name)
        return lambda value: (setattr(self, name.removeprefix("set_"), value), self)[1]


class FakeGraph:
    """Records what it is told; `execute` does it, in float32, on the memory at the addresses."""

    def __init__(self, module, handle=None, **types_):
        self.module, self.handle, self.types = module, handle, types_
        self.tensors, self.operations, self.settings, self.built = {}, [], {}, None
        module.graphs.append(self)

    def tensor(self, name, uid, dim, stride, data_type):
        self.tensors[name] = FakeTensor(uid=uid, dim=dim, stride=stride, data_type=data_type)
        return self.tensors[name]

    def _operation(self, name, **attributes):
        self.operations.append((name, attributes))
        self.tensors["y"] = FakeTensor()
        return self.tensors["y"]

    def conv_fprop(self, image, weight, padding, stride, dilation, compute_data_type, name):
        return self._operation("conv_fprop", padding=padding, stride=stride, dilation=dilation)

    def add(self, a, b, compute_data_type, name):
        return self._operation("add", of=next(name for name, tensor in self.tensors.items() if tensor is b))

    def relu(self, input, compute_data_type, name):
        return self._operation("relu")

    def validate(self):
        assert self.tensors["y"].output

    def build_operation_graph(self): ...

    def create_execution_plans(self, modes):
        self.settings["modes"] = modes

    def deselect_numeric_notes(self, notes):
        self.settings["notes"] = notes

    def deselect_workspace_greater_than(self, size):
        self.settings["workspace"] = size

    def get_execution_plan_count(self):
        return self.module.plans

    def build_plan_at_index(self, index):
        assert 0 <= index < self.module.plans
        self.module.builds.append(index)
        if index in self.module.broken:
            raise NotSupportedError(f"plan {index} does not compile\nmore")
        self.built = index

    def get_workspace_size(self):
        return 64

    def serialize(self):
        if not self.module.serialises:
            raise RuntimeError("not serialisable")
        tensors = {name: {**vars(tensor), "data_type": tensor.data_type.name} for name, tensor in self.tensors.items()}
        return list(json.dumps([tensors, self.operations, self.built]).encode())

    def deserialize(self, handle, data):
        tensors, self.operations, self.built = json.loads(bytes(data))
        self.tensors = {name: FakeTensor(**{**tensor, "data_type": DataType[tensor["data_type"]]}) for name, tensor in tensors.items()}

    def _memory(self, name, addresses):
        tensor = self.tensors[name]
        dtype = TORCH_TYPES[tensor.data_type.name]
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.dim, tensor.stride, strict=True))
        address = addresses[tensor.uid]
        assert address % 16 == 0
        flat = torch.frombuffer((ctypes.c_uint8 * (span * dtype.itemsize)).from_address(address), dtype=dtype)
        return flat.as_strided(tensor.dim, tensor.stride)

    def execute(self, addresses, workspace, handle):
        assert self.built is not None
        assert workspace.numel() == 64
        assert self.module.streams[handle] == 7
        for name, attributes in self.operations:
            if name == "conv_fprop":
                x, weight = (self._memory(name, addresses).float() for name in ("x", "weight"))
                y = F.conv2d(x, weight, None, attributes["stride"], attributes["padding"], attributes["dilation"])
            elif name == "add":
                y = y + self._memory(attributes["of"], addresses).float()
            else:
                y = y.relu()
        self._memory("y", addresses).copy_(y)


def make_module(version="1.32.0"):
    module = types.ModuleType("cudnn")
    module.__version__ = version
    module.data_type, module.heur_mode, module.numerical_note = DataType, Mode, Note
    module.cudnnGraphNotSupportedError = NotSupportedError
    module.graphs, module.builds, module.broken, module.streams = [], [], set(), {}
    module.plans, module.serialises = 4, True
    module.backend_version = lambda: 92600
    module.create_handle = object
    module.set_stream = lambda handle, stream: module.streams.__setitem__(handle, stream)
    module.pygraph = lambda **arguments: FakeGraph(module, **arguments)
    return module
