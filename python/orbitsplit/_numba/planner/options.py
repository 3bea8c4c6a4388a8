"""The options of a solve, as in cpp/src/planner/options.hpp."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Options(NamedTuple):
    """The options of `solve`, with two that only our own tests set.

    `max_ng_size` is the size of the ng-set in free order, the nodes that bounds keep from repeating; each may double
    the work. Free order of up to `max_bitset_nodes` nodes, at most 64, tells visited sets apart by one bit for each
    node; of more nodes bounds eliminate k-cycles (k_cycle.py) and sets are told apart by a hash. `threads` are those
    that C++ may use: here one thread does all, with the same result.
    """

    objective: str
    max_nodes: int | None
    gap: float
    time_limit_s: float
    max_labels: int
    max_bytes: int
    threads: int
    incumbent: NDArray[np.int32]
    max_ng_size: int
    max_bitset_nodes: int
