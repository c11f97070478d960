"""Dropout in evaluation mode is the identity: drop it."""

from __future__ import annotations

from fastcnn.graph.ir import CapturedGraph, arguments, aten
from fastcnn.graph.plan import PassReport

_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default)


def drop_dropout(captured: CapturedGraph) -> PassReport:
    """Srivastava et al., Dropout, JMLR 2014: activations are scaled while training, so that nothing is left to do afterwards."""
    report = PassReport("drop_dropout")
    for node in captured.calls(*_DROPOUTS):
        if arguments(node)["train"]:
            report.decline("dropout in training mode")
            continue
        captured.replace(node, arguments(node)["input"])
        report.fired += 1
    return report
