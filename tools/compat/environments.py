"""The runtimes of the matrix, and the environment that each gets: a virtual one of Python's or a folder of npm's, outside the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_INSTALL_LIMIT = 1200  # seconds


@dataclass(frozen=True)
class Runtime:
    """One row of the matrix.

    Attributes:
        title: as the table calls it.
        kind: what `runner.py` knows it by, or the name of an npm package.
        version: of the package that it is.
        packages: what pip or npm installs.
        npm: it runs in Node.js.
    """

    title: str
    kind: str
    version: str
    packages: tuple[str, ...]
    npm: bool = False

    @property
    def name(self) -> str:
        """Of its environment."""
        return f"{self.kind}-{self.version}"

    def prepare(self, environments: Path) -> str | None:
        """Make the environment unless it is there; says why it cannot be had here, None where it can."""
        folder = environments / self.name
        if (folder / ".ready").exists():
            return None
        if self.npm and (shutil.which("node") is None or shutil.which("npm") is None):
            return "no Node.js here"
        folder.mkdir(parents=True, exist_ok=True)
        if self.npm:
            # Without scripts: that of onnxruntime-node downloads GPU libraries.
            steps = [["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", *self.packages]]
        else:
            pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", "--disable-pip-version-check"]
            steps = [[sys.executable, "-m", "venv", "--without-pip", str(folder)], [*pip, *self.packages]]
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, timeout=_INSTALL_LIMIT, check=False)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line.strip()]
                return f"not installed: {lines[-1].strip() if lines else f'{step[0]} ended with code {done.returncode}'}"
        (folder / ".ready").touch()
        return None

    def command(self, environments: Path) -> list[str]:
        """What reads jobs from stdin and answers them; to run in the folder of the environment."""
        folder = environments / self.name
        if self.npm:
            return ["node", str(_HERE / "runner.js"), self.kind]
        return [str(folder / "bin" / "python"), "-P", str(_HERE / "runner.py"), self.kind]


def _python(title: str, kind: str, version: str, package: str, *others: str) -> Runtime:
    return Runtime(title, kind, version, (f"{package}=={version}", *others))


_OLD_NUMPY = "numpy<2"

RUNTIMES: tuple[Runtime, ...] = (
    _python("ONNX Runtime", "onnxruntime", "1.15.1", "onnxruntime", _OLD_NUMPY),
    _python("ONNX Runtime", "onnxruntime", "1.16.3", "onnxruntime", _OLD_NUMPY),
    _python("ONNX Runtime", "onnxruntime", "1.31.1", "onnxruntime"),
    Runtime("onnxruntime-node", "onnxruntime-node", "1.30.0", ("onnxruntime-node@1.30.0",), npm=True),
    Runtime("onnxruntime-web (WebAssembly, in Node.js)", "onnxruntime-web", "1.30.0", ("onnxruntime-web@1.30.0",), npm=True),
    _python("ONNX reference evaluator", "onnx", "1.23.2", "onnx"),
    _python("OpenVINO", "openvino", "2023.3.0", "openvino"),
    _python("OpenVINO", "openvino", "2024.6.0", "openvino"),
    _python("OpenVINO", "openvino", "2026.4.1", "openvino"),
    _python("OpenCV", "opencv", "4.8.1.78", "opencv-python-headless", _OLD_NUMPY),
    _python("OpenCV", "opencv", "4.13.0.92", "opencv-python-headless"),
    _python("OpenCV", "opencv", "5.0.0.93", "opencv-python-headless"),
    _python("tract", "tract", "0.23.9", "tract"),
    _python("TVM (relax, LLVM)", "tvm", "0.27.0.post1", "apache-tvm", "onnx"),
)

# What the matrix leaves out, and why.
LEFT_OUT = {
    "MNN": "its Python package reports to its maker when it is imported",
    "ncnn": "its converter from ONNX, pnnx, brings PyTorch along (5.6 GB)",
    "IREE, ExecuTorch, AOTInductor": "they compile; no runner is written yet",
    "TensorRT": "needs an NVIDIA GPU; `--for tensorrt` holds files against the rules of its parser",
    "CoreML, LiteRT, DirectML": "need a Mac, a phone or Windows",
}
