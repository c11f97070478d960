from __future__ import annotations

import pytest

from fastcnn.bench.records.result import check_baseline
from fastcnn.errors import UnknownNameError


def test_unknown_baseline() -> None:
    check_baseline("best-peer", ["eager"])
    check_baseline("eager", ["eager"])
    with pytest.raises(UnknownNameError, match="did you mean eager"):
        check_baseline("eagre", ["eager"])
