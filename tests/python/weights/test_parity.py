"""The same bytes and the same bits: on every instruction set, in Numba, on several threads.

tests/cpp/test_weights.cpp compares instruction sets too, also on processors that these tests do not run on.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitsplit._backend import load_backend

NATIVE, NUMBA = load_backend("native"), load_backend("numba")
CASES = 400
NONE = np.empty(0, np.float32)


@pytest.fixture(autouse=True)
def _restore_isa():
    chosen = NATIVE.isa()
    yield
    NATIVE.set_isa(chosen)


def random_singles(rng, shape):
    """Float32 values of one of the kinds that kernels go wrong on."""
    kind = rng.integers(7)
    x = rng.standard_normal(shape, np.float32)
    if kind == 1:  # every finite exponent
        return np.ldexp(x, rng.integers(-148, 126, shape)).astype(np.float32)
    if kind == 2:  # denormals
        return (rng.integers(-200, 200, shape) * np.float32(2.0**-149)).astype(np.float32)
    if kind == 3:  # ties and equal values
        return rng.integers(-4, 5, shape).astype(np.float32)
    if kind == 4:  # massive channels, zero groups
        return x * np.where(np.arange(shape[-1]) % 61 == 3, np.float32(1000), np.float32(0))
    if kind == 5:  # around what a float16 scale can be
        return x * np.where(rng.random(shape) < 0.5, np.float32(2e6), np.float32(1e-6))
    return x


def run(module, w, format, x, data, indices, importance, threads):
    """Return everything that a backend computes, or the message of what it refuses."""
    rows, columns = w.shape
    results = []
    quantised = np.zeros(module.quantized_bytes(format, rows, columns), np.uint8)
    try:
        module.quantize(w, format, rows, columns, quantised, importance, threads)
        results.append(quantised.tobytes())
    except ValueError as error:
        results.append(str(error))
    for weights in (quantised, data):
        y = np.empty((len(x), rows), np.float32)
        module.multiply(weights, format, rows, columns, x, len(x), y, threads)
        everything, some = np.empty(w.shape, np.float32), np.empty((len(indices), columns), np.float32)
        module.dequantize(weights, format, rows, columns, 0, everything, threads)
        module.dequantize_rows(weights, format, rows, columns, indices, some, threads)
        results += [y.tobytes(), everything.tobytes(), some.tobytes()]
    return results


@settings(max_examples=CASES, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    format=st.sampled_from([0, 1, 2]),
    rows=st.sampled_from([0, 1, 2, 7, 63, 64, 65, 70]),
    groups=st.integers(1, 20),
    inputs=st.integers(0, 19),
    is_any=st.booleans(),
    is_weighted=st.booleans(),
)
def test_everything_computes_the_same(seed, format, rows, groups, inputs, is_any, is_weighted):
    rng = np.random.default_rng(seed)
    columns = 32 * groups
    w, x = random_singles(rng, (rows, columns)), random_singles(rng, (inputs, columns))
    if is_any and x.size:
        x.flat[rng.integers(x.size)] = rng.choice([np.nan, np.inf, -np.inf])
    memory = rng.integers(0, 256, NATIVE.quantized_bytes(format, rows, columns) + 1, np.uint8)
    indices = rng.integers(0, max(1, rows), 3 if rows else 0)
    importance = np.abs(rng.standard_normal(columns, np.float32)) if is_weighted else NONE
    sets = [(f"{name} {threads}", NATIVE, name, threads) for name in NATIVE.isas() for threads in (1, 3)]
    expected = None
    for name, module, isa, threads in [*sets, ("numba", NUMBA, "numba", 1)]:
        module.set_isa(isa)
        with np.errstate(divide="raise", over="raise", invalid="raise"):
            found = run(module, w, format, x, memory[1:], indices, importance, threads)
        if expected is None:
            expected = found
        for k, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert one == other, f"result {k} of {name} differs from that of {sets[0][0]}"
