"""Triton kernels for NHWC activations, one file each, with the PyTorch reference of a kernel beside it.

Names are imported when they are first used: `import fastcnn.kernels` works without a GPU and without Triton.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastcnn.errors import BackendError

if TYPE_CHECKING:
    from fastcnn.kernels.affine import scale_bias_relu, scale_bias_relu_ref
    from fastcnn.kernels.concat import concat_relu, concat_relu_ref
    from fastcnn.kernels.convolution import conv2d_bias_relu, conv2d_bias_relu_ref
    from fastcnn.kernels.convolution_configs import ConvConfig
    from fastcnn.kernels.convolution_group import GroupedConv, conv2d_group, conv2d_group_ref
    from fastcnn.kernels.convolution_problem import Convolution, pack_weight
    from fastcnn.kernels.global_pooling import global_avg_pool2d, global_avg_pool2d_ref
    from fastcnn.kernels.launching import count_launches
    from fastcnn.kernels.pooling import PoolWindow, avg_pool2d, avg_pool2d_ref, max_pool2d, max_pool2d_ref
    from fastcnn.kernels.stem import StemConvolution, pack_stem_weight, stem_conv2d, stem_conv2d_ref
    from fastcnn.kernels.tma_convolution import conv2d_tma, conv2d_tma_ref, supports_tma
    from fastcnn.kernels.tma_convolution_configs import TmaConfig

_NAMES = {
    "affine": ("scale_bias_relu", "scale_bias_relu_ref"),
    "concat": ("concat_relu", "concat_relu_ref"),
    "convolution": ("conv2d_bias_relu", "conv2d_bias_relu_ref"),
    "convolution_configs": ("ConvConfig",),
    "convolution_group": ("GroupedConv", "conv2d_group", "conv2d_group_ref"),
    "convolution_problem": ("Convolution", "pack_weight"),
    "global_pooling": ("global_avg_pool2d", "global_avg_pool2d_ref"),
    "launching": ("count_launches",),
    "pooling": ("PoolWindow", "avg_pool2d", "avg_pool2d_ref", "max_pool2d", "max_pool2d_ref"),
    "stem": ("StemConvolution", "pack_stem_weight", "stem_conv2d", "stem_conv2d_ref"),
    "tma_convolution": ("conv2d_tma", "conv2d_tma_ref", "supports_tma"),
    "tma_convolution_configs": ("TmaConfig",),
}
_HOMES = {name: f"fastcnn.kernels.{module}" for module, names in _NAMES.items() for name in names}

__all__ = [
    "ConvConfig",
    "Convolution",
    "GroupedConv",
    "PoolWindow",
    "StemConvolution",
    "TmaConfig",
    "avg_pool2d",
    "avg_pool2d_ref",
    "concat_relu",
    "concat_relu_ref",
    "conv2d_bias_relu",
    "conv2d_bias_relu_ref",
    "conv2d_group",
    "conv2d_group_ref",
    "conv2d_tma",
    "conv2d_tma_ref",
    "count_launches",
    "global_avg_pool2d",
    "global_avg_pool2d_ref",
    "max_pool2d",
    "max_pool2d_ref",
    "pack_stem_weight",
    "pack_weight",
    "scale_bias_relu",
    "scale_bias_relu_ref",
    "stem_conv2d",
    "stem_conv2d_ref",
    "supports_tma",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastcnn.kernels' has no attribute {name!r}")
    try:
        module = importlib.import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "triton":
            raise
        raise BackendError(
            f"fastcnn.kernels.{name} needs Triton, which is not installed here; install triton (Linux) or use another backend"
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
