"""What a run leaves: the checkpoint that it goes on from, and the best weights with their history."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.archives import ArchiveError
from fastcnn.errors import FileFormatError, RequestError
from fastcnn.files import replacing
from fastcnn.models.checkpoints import check_archive
from fastcnn.models.weights import DESCRIPTION_KEY, description_digests

_FORMAT = 2  # with a digest
_DIGEST = "sha256"


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Writes tensors and plain data; the file that was there stays whole until the new one is."""
    with replacing(path) as temporary, temporary.open("wb") as file:  # a path would give the archive's folder the draft's name
        content = {"format": _FORMAT, **state}
        torch.save({**content, _DIGEST: content_sha256(content)}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU. Nothing in the file is run.

    Raises:
        RequestError: no such file.
        FileFormatError: something else, or a damaged file.
    """
    if not path.is_file():
        raise RequestError(f"there is no checkpoint {path} to resume from")
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ArchiveError as error:
        raise FileFormatError(f"{path} is no checkpoint of `fastcnn train`, or a damaged one: {error}") from error
    except Exception as error:  # a damaged archive can raise anything
        raise FileFormatError(f"{path} is no checkpoint of `fastcnn train`, or a damaged one") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise FileFormatError(f"{path} is no checkpoint of `fastcnn train` in format {_FORMAT}")
    if state.pop(_DIGEST, None) != content_sha256(state):
        raise FileFormatError(f"{path} is damaged: it is not what `fastcnn train` wrote (SHA-256); start again with --force")
    return state


def content_sha256(content: Any) -> str:
    """SHA-256 (64 hex digits) over plain data and tensors in whatever containers they stand: kinds, keys, order and every bit of every number.

    Raises TypeError for anything that is no plain data.
    """
    digest = hashlib.sha256()
    _feed(digest, content)
    return digest.hexdigest()


def _feed(digest: Any, content: Any) -> None:
    if isinstance(content, Tensor):
        digest.update(f"tensor {content.dtype} {list(content.shape)}\0".encode())
        plain = content.detach().cpu().contiguous()
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b"")
    elif isinstance(content, Mapping):
        digest.update(f"mapping {len(content)}\0".encode())
        for key, value in content.items():
            _feed(digest, key)
            _feed(digest, value)
    elif isinstance(content, (list, tuple)):
        digest.update(f"{type(content).__name__} {len(content)}\0".encode())
        for value in content:
            _feed(digest, value)
    elif content is None or isinstance(content, (bool, int, float, str)):
        text = repr(content).encode()
        digest.update(f"{type(content).__name__} {len(text)}\0".encode() + text)
    else:
        raise TypeError(f"a {type(content).__name__} is no plain data")


def save_weights(model: nn.Module, description: Mapping[str, Any], path: Path) -> None:
    """Writes the weights as safetensors with their description as metadata. The same of both gives the same bytes."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    described = {**description, "digests": description_digests(description, tensors)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {DESCRIPTION_KEY: json.dumps(described, ensure_ascii=False)})
