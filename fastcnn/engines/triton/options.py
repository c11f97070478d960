"""What the `triton` engine may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# In this order where nothing was measured: the first that can.
IMPLEMENTATIONS = ("triton_stem", "triton", "triton_tma", "cudnn_graph", "library")


@dataclass(frozen=True)
class TritonOptions:
    """Every switch is one technique, so that a benchmark can show what each brings; the defaults are all of them.

    Attributes:
        move_pools: average pools behind the 1×1 projections that follow them.
        merge_siblings: 1×1 convolutions of one input become one convolution, whose output channels are scattered.
        concat_in_place: what is concatenated is written into its slice of the concat.
        grouped: independent convolutions of one dependency level in one launch: where it was measured to be faster,
            always, or never.
        concurrent: the launches of one dependency level on streams of their own.
        cuda_graph: the whole network is one CUDA graph for each batch size.
        tuning_seconds: the most that measuring implementations takes for one batch size; what is in the cache is not
            measured. 0: predictions only.
        use_cache: read and write the choices on disk.
        implementations: of convolutions, to choose among; the first that can where nothing was measured.
    """

    move_pools: bool = True
    merge_siblings: bool = True
    concat_in_place: bool = True
    grouped: Literal["measured", "always", "never"] = "measured"
    concurrent: bool = True
    cuda_graph: bool = True
    tuning_seconds: float = 60.0
    use_cache: bool = True
    implementations: tuple[str, ...] = IMPLEMENTATIONS
