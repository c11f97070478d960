"""The examples at the end of every `--help` page, by the command that they are of."""

from __future__ import annotations

# Each is what it does, and the command; tests/cli/test_examples.py parses every one as the shell and the command would.
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("a model as a file that was checked in its own runtime", "fastcnn export inception_v3 --onnx"),
        ("what is on the pictures of a folder", "fastcnn predict inception_v3.onnx photos"),
    ),
    "list": (
        ("every ResNet, those with pre-activation too", 'fastcnn list "*resnet*"'),
        ("the whole table for a program", "fastcnn list --json"),
    ),
    "info": (
        ("layers, shapes and parameters", "fastcnn info resnet50"),
        ("and what is fused for ONNX Runtime", "fastcnn info inception_v3 --plan --backend onnxruntime"),
        ("what a file of others takes and gives", "fastcnn info model.onnx"),
    ),
    "export": (
        ("inception_v3.onnx, for any batch size", "fastcnn export inception_v3 --onnx"),
        (
            "trained weights in float16, for batches of 8",
            "fastcnn export resnet50 -o r50.pt2 --weights r50.pth --precision fp16 --batch-size 8",
        ),
        ("for another runtime: what that changes is said", "fastcnn export resnet50 --onnx --for tract"),
        ("a model of timm's or torchvision's", "fastcnn export timm:efficientnet_b0 --onnx"),
        ("one of your own, which build() in net.py makes", "fastcnn export net.py:build --onnx --input-shape 3x224x224 --model-arg width=64"),
    ),
    "bundle": (
        ("a model repository for Triton Inference Server", "fastcnn bundle resnet50 -o repo --weights r50.pth"),
        ("one of a file that was exported before, for OpenVINO Model Server", "fastcnn bundle resnet50.onnx -o repo --server ovms"),
        ("a TensorRT plan, which is built where it will run", "fastcnn bundle resnet50 -o repo --backend tensorrt --max-batch-size 32"),
    ),
    "optimize": (
        ("inception_v3.fast, on the fastest backend of this machine", "fastcnn optimize inception_v3"),
        (
            "trained weights of five classes on one backend, without a second copy of them",
            "fastcnn optimize resnet50 --weights best.ckpt --num-classes 5 --backend onnxruntime --slim -o r50.fast",
        ),
    ),
    "predict": (
        ("the three likeliest classes of each picture", "fastcnn predict inception_v3.onnx 'photos/*.jpg' --top-k 3"),
        (
            "a large folder, so that a stopped run can go on",
            "fastcnn predict resnet50 photos --weights r50.pth -o answers.jsonl --quarantine bad.jsonl --resume",
        ),
        ("the first of four machines, each of which answers its share of the tars", "fastcnn predict r50.onnx tars -o parts --shard 0/4"),
    ),
    "verify": (
        ("whether a file still computes what it did when it was written", "fastcnn verify inception_v3.onnx"),
        ("the figures for a program", "fastcnn verify inception_v3.onnx --json"),
        ("a file that another tool wrote", "fastcnn verify theirs.onnx --against torchvision:resnet50 --weights r50.pth --num-classes 5"),
    ),
    "bench": (
        ("two sizes of batch, beside every runtime that is installed", "fastcnn bench inception_v3 --batch-size 1,8"),
        ("some rows only, with a page of plots", "fastcnn bench resnet50 --peers 'eager,onnxruntime,fastcnn*' --html r50.html"),
    ),
    "bench compare": (
        ("how much faster each row became", "fastcnn bench compare old.json new.json"),
        ("for a pipeline: exit code 1 where a row of ours became slower", "fastcnn bench compare old.json new.json --fail-if-slower 5%"),
    ),
    "bench page": (
        ("new.html, beside the result", "fastcnn bench page new.json"),
        ("under another name, over an older one", "fastcnn bench page new.json --html report.html --force"),
    ),
    "bench layers": (
        ("every implementation of every convolution, in float16", "fastcnn bench layers inception_v3"),
        ("one batch size, every time in a file", "fastcnn bench layers resnet50 --batch-size 32 --json layers.json"),
    ),
    "train": (
        ("ten epochs, the weights in runs/inception_mnist-mnist", "fastcnn train inception_mnist --dataset mnist --data DIR"),
        ("on after Ctrl-C, where the run stopped", "fastcnn train inception_mnist --dataset mnist --data DIR --resume"),
    ),
    "evaluate": (
        ("the accuracy of trained weights", "fastcnn evaluate inception_mnist --weights mnist --dataset mnist --data DIR"),
        (
            "the pictures on which a file and a model disagree",
            "fastcnn evaluate --compare m.onnx simple_cnn --weights mnist --dataset mnist --data DIR --sheet differ.png",
        ),
    ),
    "env": (
        ("what can run here, and why the rest cannot", "fastcnn env"),
        ("to go with a report of a problem", "fastcnn env --json"),
    ),
}


# An example that parses (tests/cli/test_examples.py), and the docstring of fastcnn.preprocessing.Preprocessing in short.
PREPROCESSING = """\b
The file of --preprocessing says how a picture becomes the input, in this order:
  {"channels": "RGB",              or BGR, or L for grey
   "resize": 256,                  the shorter side, or [height, width], or null
   "crop": [224, 224],             height and width from the middle, or null
   "interpolation": "bilinear",    or nearest, bicubic, lanczos, box, hamming
   "antialias": true,              as Pillow resizes
   "value_range": [0.0, 1.0],      what 0 and 255 become; then (value - mean) / std
   "mean": [0.485, 0.456, 0.406],  one number a channel
   "std": [0.229, 0.224, 0.225]}"""


def examples(command: str, note: str = "") -> str:
    """The end of a help page: a note, then the examples of a command, kept line by line.

    Args:
        command: as the shell spells it after `fastcnn`, "bench compare" for one.
    """
    lines = ["\b", "Examples:"]  # \b: click does not fill the lines of this paragraph
    for what, example in EXAMPLES[command]:
        lines += [f"  # {what}", f"  {example}"]
    return "\n".join([note, "", *lines] if note else lines)
