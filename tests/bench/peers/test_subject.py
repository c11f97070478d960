from __future__ import annotations

import pytest
import torch

from fastcnn.bench.peers.runtimes import OnnxRuntime
from fastcnn.bench.peers.subject import Subject


@pytest.mark.parametrize("name", ["inception_v3", "simple_cnn"])
def test_weights_under_test_keep_the_signal_within_float16(name: str) -> None:
    from fastcnn.bench.peers.subject import WEIGHTS, model_under_test
    from fastcnn.models import model_spec

    channels, height, _ = model_spec(name).input_size
    size = 75 if height > 100 else height
    model = model_under_test(name)
    assert model.fastcnn_info.weights == WEIGHTS
    with torch.no_grad():
        output = model(torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)))
        again = model_under_test(name)(torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)))
    assert 0.01 < output.std() < 1000
    torch.testing.assert_close(output, again, rtol=0, atol=0)


THREADS = 2


def test_plain_export_is_made_once_and_counted_for_each_row(subject: Subject, x: torch.Tensor) -> None:
    if OnnxRuntime().available():
        pytest.skip("onnxruntime is not installed")
    with subject:
        first = OnnxRuntime().prepare(subject, x, THREADS)
        path, seconds = subject.plain_onnx(x)
        written = path.stat().st_mtime_ns
        second = OnnxRuntime().prepare(subject, x[:1], THREADS)
        assert path.stat().st_mtime_ns == written
        assert first.reused_seconds == 0.0
        assert second.reused_seconds == seconds > 0
        for size in (1, 3):
            batch = torch.rand(size, *x.shape[1:])
            torch.testing.assert_close(second.run(batch), subject.model(batch).detach())
    assert not path.parent.exists()
