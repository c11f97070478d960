"""Run a TorchScript or `.pt2` file where nothing but PyTorch is loaded. A script, started by `runtimes`; it must not import fastcnn.

    python -P fresh_process.py torchscript|pt2 FILE INPUTS OUTPUTS

INPUTS is a list of tensors, one per batch, written by torch.save; OUTPUTS gets a list with a list of tensors per batch.
"""

import sys
import warnings

import torch


def main() -> None:
    """Load the file, run every batch, write what came out."""
    format_, file, inputs, outputs = sys.argv[1:]
    warnings.simplefilter("ignore")  # torch.jit.load says that it is deprecated
    module = torch.jit.load(file, map_location="cpu") if format_ == "torchscript" else torch.export.load(file).module()
    with torch.inference_mode():
        results = [module(batch) for batch in torch.load(inputs, weights_only=True)]
    assert "fastcnn" not in sys.modules, "the check must see what a user sees who has PyTorch only"
    torch.save([[result] if isinstance(result, torch.Tensor) else list(result) for result in results], outputs)


if __name__ == "__main__":
    main()
