"""What a run leaves: the checkpoint that it goes on from, and the best weights with their history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.errors import FileFormatError, RequestError
from fastcnn.files import replacing
from fastcnn.models.weights import DESCRIPTION_KEY

_FORMAT = 1


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Writes tensors and plain data; the file that was there stays whole until the new one is."""
    with replacing(path) as temporary:
        torch.save({"format": _FORMAT, **state}, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU. Nothing in the file is run.

    Raises:
        RequestError: no such file.
        FileFormatError: something else, or a damaged file.
    """
    if not path.is_file():
        raise RequestError(f"there is no checkpoint {path} to resume from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive can raise anything
        raise FileFormatError(f"{path} is no checkpoint of `fastcnn train`, or a damaged one") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise FileFormatError(f"{path} is no checkpoint of `fastcnn train` in format {_FORMAT}")
    return state


def save_weights(model: nn.Module, description: Mapping[str, Any], path: Path) -> None:
    """Writes the weights as safetensors with their description as metadata. The same of both gives the same bytes."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {DESCRIPTION_KEY: json.dumps(description, ensure_ascii=False)})
