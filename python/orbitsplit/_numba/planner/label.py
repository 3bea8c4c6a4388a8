"""A label: one way to place the layers before a boundary, as in cpp/src/planner/label.hpp.

A label is a row of numbers and a row of indices; these are the columns. Its set key is in an array of its own.
"""

from __future__ import annotations

from orbitsplit._numba.jit import inlined

from .tables import Floats, Ints

# Columns of the numbers: two loads of (sum, max, open), then the rest. In prefill the sum is of the last micro-batch,
# the others of those before it. The last stage enters the maximum only when it is complete: until then what it has
# collected is open, and encoding or a half-duplex transmission may still be added.
SUM, MAX, OPEN = 0, 1, 2
PREFILL, TOKEN = 0, 3
LOSS, RETURN, BOUND = 6, 7, 8
# Columns of the indices. ARRIVED: on the node, nothing computed yet; else its stage ends at the boundary. LEVEL: of the
# cut before this stage once arrived, then its weight level.
PARENT, NEXT, BOUNDARY, VERTEX, FIRST, LEVEL, VISITED, ARRIVED, DOMINATED = range(9)


@inlined
def _is_no_worse(a: Floats, b: Floats, load: int, growth: float) -> bool:
    """Compare two loads: what is open does not matter while it stays below the other maximum whatever sending adds."""
    if a[load + SUM] > b[load + SUM] or a[load + MAX] > b[load + MAX]:
        return False
    return bool(a[load + OPEN] <= b[load + OPEN] or a[load + OPEN] + growth <= b[load + MAX])


@inlined
def dominates(numbers: Floats, indices: Ints, i: int, j: int, growth: tuple[float, float]) -> bool:
    """Return whether every completion of label j completes label i at no higher objective, memory or loss.

    Both are of the same state; `growth` is the most that sending can add to what is open, by phase.
    """
    a, b = numbers[i], numbers[j]
    if a[LOSS] > b[LOSS] or a[RETURN] > b[RETURN] or indices[i, VISITED] > indices[j, VISITED]:
        return False
    return _is_no_worse(a, b, PREFILL, growth[0]) and _is_no_worse(a, b, TOKEN, growth[1])
