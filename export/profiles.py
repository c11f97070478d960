"""What runs an ONNX file at the other end, and what it cannot read: one row each. Importing this module imports neither torch nor onnx.

A rule stands here with its reason, which messages give. The rows come from runs of our files in these runtimes (`docs/compatibility.md`) and, for
TensorRT, which no machine of ours has run, from the table of operators of its parser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fastcnn.errors import UnknownNameError
from fastcnn.export.preprocess import Preprocess
from fastcnn.precision import Precision
from fastcnn.quantization.request import QuantizeFor


class Batch(StrEnum):
    """Which batches a runtime wants a file to accept."""

    any = "any"
    fixed = "fixed"
    dynamic = "dynamic"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a file must look like for one runtime.

    Attributes:
        name: as `--for` takes it.
        title: as messages call it.
        formats: names of the formats that it opens.
        no_precision: precision → why no file of it works there.
        no_preprocess: what a file cannot do itself there → why.
        sized_resize: why it resizes pictures of one size only; empty where it resizes any.
        batch, batch_reason: which batches the file shall accept, and why not others.
        newest_opset, opset_reason: the newest that it reads; None where it reads all that are written.
        quantize_for: whose int8 kernels it has.
        cast_first: uint8 pixels become floating point before anything else happens to them.
        operators: all that it knows; None where there is no such list.
        no_operators: operator → why the parser stops at it.
        constant_inputs: operator → inputs, by number, that must be constants.
        two_or_three_d: convolutions and pools of pictures and volumes only.
        symmetric: numbers of 8 bits have their zero at 0.
    """

    name: str
    title: str
    formats: tuple[str, ...] = ("onnx",)
    no_precision: Mapping[Precision, str] = field(default_factory=dict)
    no_preprocess: Mapping[Preprocess, str] = field(default_factory=dict)
    sized_resize: str = ""
    batch: Batch = Batch.any
    batch_reason: str = ""
    newest_opset: int | None = None
    opset_reason: str = ""
    quantize_for: QuantizeFor = QuantizeFor.cpu
    cast_first: bool = False
    operators: frozenset[str] | None = None
    no_operators: Mapping[str, str] = field(default_factory=dict)
    constant_inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    two_or_three_d: bool = False
    symmetric: bool = False


# What ONNX's parser in TensorRT 8.4 knows (onnx-tensorrt, docs/operators.md, Apache-2.0); newer ones added to it. Left out are those it calls
# experimental, and control flow and recurrence, which no graph of ours has.
_TENSORRT = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat Constant ConstantOfShape
    Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual HardSigmoid Identity InstanceNormalization IsNaN
    LeakyRelu Less LessOrEqual Log LogSoftmax LRN LpNormalization LpPool MatMul Max MaxPool Mean Min Mul Neg Not Or Pad Pow PRelu QuantizeLinear Range
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round
    ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
    ThresholdedRelu Tile TopK Transpose Unsqueeze Where Xor
"""

_NO_INT8 = "its 8-bit graphs have not been shown right there"
_NO_SIZES = "it computes no sizes at run time: give --picture-size HEIGHTxWIDTH (picture_size=)"

PROFILES: dict[str, Profile] = {
    row.name: row
    for row in (
        Profile(name="opencv", title="OpenCV", no_precision={Precision.int8: _NO_INT8}, sized_resize=_NO_SIZES),
        Profile(
            name="tensorrt",
            title="TensorRT",
            sized_resize=_NO_SIZES,
            newest_opset=13,
            opset_reason="the parser of TensorRT 8.4 reads up to 13",
            quantize_for=QuantizeFor.tensorrt,
            cast_first=True,
            operators=frozenset(_TENSORRT.split()),
            constant_inputs={"Conv": (1,), "ConvTranspose": (1,), "CumSum": (1,), "Slice": (3,), "Squeeze": (1,), "TopK": (1,), "Unsqueeze": (1,)},
            two_or_three_d=True,
            symmetric=True,
        ),
        Profile(
            name="tract",
            title="tract",
            no_precision={Precision.fp16: "it refuses a float16 Gemm, or takes it for float32", Precision.int8: _NO_INT8},
            sized_resize=_NO_SIZES,
            batch=Batch.fixed,
            batch_reason="it cannot unify a named batch with the size that its caller pins",
        ),
        Profile(
            name="ncnn",
            title="ncnn",
            no_precision={
                Precision.fp16: "its converter makes float16 itself, from a float32 file (pnnx fp16=1)",
                Precision.int8: "it quantizes by tools of its own, from a float32 file",
            },
            no_preprocess={
                Preprocess.normalize: "it has no Cast: call substract_mean_normalize of ncnn::Mat",
                Preprocess.resize: "it has no Cast: call from_pixels_resize and substract_mean_normalize of ncnn::Mat",
            },
            batch=Batch.fixed,
            batch_reason="its layers work on one picture at a time, of sizes that the file states",
            no_operators={"Cast": "ncnn has no such layer"},
        ),
        Profile(name="web", title="onnxruntime-web"),
        Profile(
            name="triton",
            title="Triton Inference Server",
            formats=("onnx", "torchscript"),
            batch=Batch.dynamic,
            batch_reason="the server makes batches of requests itself, of any size up to its max_batch_size",
        ),
    )
}


def parse_profile(name: str | None) -> Profile | None:
    """A row of `PROFILES` by its name. Raises UnknownNameError for any other."""
    if name is None:
        return None
    if name not in PROFILES:
        raise UnknownNameError("runtime to export for", name, PROFILES)
    return PROFILES[name]
