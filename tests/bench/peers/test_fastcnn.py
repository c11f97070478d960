from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.peers.table import PEERS
from fastcnn.errors import BackendError

THREADS = 2


def test_fastcnn_row_with_another_backend_is_an_error(subject: Subject, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastcnn

    monkeypatch.setattr(fastcnn, "optimize", lambda *args, **options: SimpleNamespace(backend="torch"))
    with pytest.raises(BackendError, match="gave back the backend torch where onnxruntime was asked for"):
        PEERS["fastcnn_onnxruntime"]().prepare(subject, x, THREADS)
