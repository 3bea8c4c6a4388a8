"""A decoder's layer in the core: right, the same bits everywhere, and nothing else is accepted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from orbitsplit._backend import load_backend
from orbitsplit._weights.quantized import FORMATS, QuantizedWeights

NATIVE, NUMBA = load_backend("native"), load_backend("numba")
NORMS = ("before_attention", "queries", "keys", "after_attention", "before_mlp", "after_mlp")
EPSILON = 1e-6


class Layer:
    """Random weights of a layer, and what both backends and float64 compute with them."""

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        heads: int = 4,
        kv_heads: int = 2,
        size: int = 32,
        hidden: int = 64,
        width: int = 96,
        activation: int = 0,
        norms: tuple[str, ...] = NORMS,
        biases: tuple[str, ...] = (),
        format: str = "int8",
    ) -> None:
        self.heads, self.kv_heads, self.size, self.hidden = heads, kv_heads, size, hidden
        self.activation, self.attention_scale = activation, 1 / math.sqrt(size)
        shapes = {
            "query": (heads * size, hidden),
            "key": (kv_heads * size, hidden),
            "value": (kv_heads * size, hidden),
        }
        shapes |= {
            "output": (hidden, heads * size),
            "gate": (width, hidden),
            "up": (width, hidden),
            "down": (hidden, width),
        }
        self.matrices = {
            name: QuantizedWeights.quantize(rng.standard_normal(shape, np.float32) / 8, format)  # type: ignore[arg-type]
            for name, shape in shapes.items()
        }
        self.biases = {name: rng.standard_normal(shapes[name][0], np.float32) for name in biases}
        self.scales = {
            name: rng.standard_normal(size if name in ("queries", "keys") else hidden, np.float32) for name in norms
        }

    def on(self, module: Any, **changes: Any) -> Any:
        """The layer of a backend."""
        arguments: dict[str, Any] = {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_size": self.size,
            "attention_scale": self.attention_scale,
            "activation": self.activation,
            "epsilon": EPSILON,
            "matrices": {name: (m.data, FORMATS[m.format], *m.shape) for name, m in self.matrices.items()},
            "biases": self.biases,
            "scales": self.scales,
        }
        return module.DecoderLayer(**(arguments | changes))


class Step:
    """New tokens, angles and a cache with room: all of it in layouts that callers have."""

    def __init__(
        self,
        rng: np.random.Generator,
        layer: Layer,
        *,
        sequences: int = 2,
        new: int = 1,
        past: int = 5,
        hides: bool = False,
    ) -> None:
        self.sequences, self.new, self.tokens, self.rows = sequences, new, past + new, sequences * new
        self.x = rng.standard_normal((self.rows, layer.hidden), np.float32)
        angles = rng.uniform(-3, 3, (self.rows, layer.size))
        self.cosines, self.sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        shape = (sequences, layer.kv_heads, self.tokens + 3, layer.size)
        self.past = [rng.standard_normal(shape, np.float32) for _ in range(2)]
        self.visible = np.empty(0, np.uint8)
        if hides:
            self.visible = (rng.random((self.rows, self.tokens)) < 0.7).astype(np.uint8)

    def run(self, layer: Layer, module: Any, threads: int = 1) -> tuple[np.ndarray, ...]:
        """Queries, keys, values and output."""
        return run_together([self], layer, module, threads)

    def cache(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """The cache with the keys and values [rows, kv_heads, size] of the new tokens."""
        cached = [past.copy()[:, :, : self.tokens] for past in self.past]
        for all_tokens, new in zip(cached, (keys, values), strict=True):
            of_sequences = new.reshape(self.sequences, self.new, *new.shape[1:])
            all_tokens[:, :, -self.new :] = of_sequences.swapaxes(1, 2)
        return cached[0], cached[1], self.visible, self.new

    def expected(self, layer: Layer) -> tuple[np.ndarray, ...]:
        """The same in float64, as the formulas of decoder.hpp say it."""

        def linear(name: str, x: np.ndarray) -> np.ndarray:
            return x @ layer.matrices[name].dequantize().astype(np.float64).T + layer.biases.get(name, 0)

        def rms(name: str, x: np.ndarray) -> np.ndarray:
            if name not in layer.scales:
                return x
            return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + EPSILON) * layer.scales[name]

        def rotate(x: np.ndarray) -> np.ndarray:
            turned = np.concatenate([-x[..., layer.size // 2 :], x[..., : layer.size // 2]], -1)
            return x * self.cosines[:, None] + turned * self.sines[:, None]

        x = self.x.astype(np.float64)
        a = rms("before_attention", x)
        queries = rotate(rms("queries", linear("query", a).reshape(self.rows, -1, layer.size)))
        keys = rotate(rms("keys", linear("key", a).reshape(self.rows, -1, layer.size)))
        values = linear("value", a).reshape(self.rows, -1, layer.size)
        heads = np.zeros_like(queries)
        for row in range(self.rows):
            sequence, at = divmod(row, self.new)
            rows = slice(sequence * self.new, (sequence + 1) * self.new)
            seen = self.visible.reshape(-1, self.tokens)[row] if self.visible.size else None
            for head in range(layer.heads):
                of_head = head * layer.kv_heads // layer.heads
                k, v = (
                    np.concatenate([past[sequence, of_head, : self.tokens - self.new], new[rows, of_head]])
                    for past, new in zip(self.past, (keys, values), strict=True)
                )
                is_seen = np.arange(self.tokens) <= self.tokens - self.new + at if seen is None else seen > 0
                scores = np.where(is_seen, np.exp(k @ queries[row, head] * layer.attention_scale), 0)
                heads[row, head] = scores @ v / scores.sum() if is_seen.any() else 0
        h = x + rms("after_attention", linear("output", heads.reshape(self.rows, -1)))
        m = rms("before_mlp", h)
        gate = linear("gate", m)
        if layer.activation == 0:
            gate = gate / (1 + np.exp(-gate))
        else:
            gate = gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        y = h + rms("after_mlp", linear("down", gate * linear("up", m)))
        return queries, keys, values, y


def run_together(steps: Sequence[Step], layer: Layer, module: Any, threads: int = 1) -> tuple[np.ndarray, ...]:
    """Queries, keys, values and output of steps, each with a cache of its own, in one call."""
    made = layer.on(module)
    x, cosines, sines = (
        np.concatenate(parts) for parts in zip(*((s.x, s.cosines, s.sines) for s in steps), strict=True)
    )
    queries = np.empty((len(x), layer.heads, layer.size), np.float32)
    keys, values = np.empty((2, len(x), layer.kv_heads, layer.size), np.float32)
    made.project(x, len(x), cosines, sines, queries, keys, values, threads)
    ends = np.cumsum([step.rows for step in steps])
    caches = [s.cache(keys[end - s.rows : end], values[end - s.rows : end]) for s, end in zip(steps, ends, strict=True)]
    y = np.empty_like(x)
    made.attend(x, len(x), queries, caches, y, threads)
    return queries, keys, values, y


KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"activation": 1, "kv_heads": 1, "size": 80},
    {"norms": ("before_attention", "before_mlp"), "biases": ("query", "key", "value"), "kv_heads": 4},
    {"norms": (), "biases": ("output", "gate", "up", "down"), "size": 16, "format": "int4"},
    {"kv_heads": 1, "size": 16, "format": "int5"},
)
STEPS: tuple[dict[str, Any], ...] = (
    {},
    {"sequences": 1, "past": 40},
    {"sequences": 3, "new": 4, "past": 9},
    {"sequences": 2, "new": 3, "past": 0},
    {"sequences": 9, "past": 17, "hides": True},
)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_the_formulas(kind: dict[str, Any], step: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    layer = Layer(rng, **kind)
    given = Step(rng, layer, **step)
    for found, expected in zip(given.run(layer, NATIVE), given.expected(layer), strict=True):
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_the_same_on_every_instruction_set_in_numba_and_on_threads(
    kind: dict[str, Any], step: dict[str, Any]
) -> None:
    rng = np.random.default_rng(1)
    layer = Layer(rng, **kind)
    given = Step(rng, layer, **step)
    expected = [array.tobytes() for array in given.run(layer, NUMBA)]
    chosen = NATIVE.isa()
    try:
        for isa in NATIVE.isas():
            NATIVE.set_isa(isa)
            assert [array.tobytes() for array in given.run(layer, NATIVE, threads=2)] == expected, isa
    finally:
        NATIVE.set_isa(chosen)


@pytest.mark.parametrize("activation", [0, 1])
def test_special_values_give_the_same_bits_everywhere(activation: int) -> None:
    rng = np.random.default_rng(7)
    layer = Layer(rng, activation=activation)
    given = Step(rng, layer, sequences=8, past=11, hides=True)
    given.visible.reshape(8, -1)[7] = 0
    for row, scale in enumerate((1e-42, 1e4, 1e30, 0.0)):
        given.x[row] *= np.float32(scale)
    given.x[4], given.x[5, 3], given.x[6, 5] = -0.0, np.inf, np.nan
    given.past[0][1] *= np.float32(1e4)
    given.past[1][2] *= np.float32(1e-42)
    expected = given.run(layer, NUMBA)
    chosen = NATIVE.isa()
    try:
        for isa in NATIVE.isas():
            NATIVE.set_isa(isa)
            for found, of_twin in zip(given.run(layer, NATIVE), expected, strict=True):
                assert np.array_equal(np.isnan(found), np.isnan(of_twin)), isa
                is_number = ~np.isnan(found)
                assert found[is_number].tobytes() == of_twin[is_number].tobytes(), isa
    finally:
        NATIVE.set_isa(chosen)


@pytest.mark.parametrize("module", [NATIVE, NUMBA])
def test_no_rows_are_no_work(module: Any) -> None:
    layer = Layer(np.random.default_rng(8)).on(module)
    nothing = np.empty(0, np.float32)
    layer.project(nothing, 0, nothing, nothing, nothing.copy(), nothing.copy(), nothing.copy())
    cache = np.zeros((2, 2, 6, 32), np.float32)
    layer.attend(nothing, 0, nothing, [(cache, cache, np.empty(0, np.uint8), 0)], nothing.copy())
    layer.attend(nothing, 0, nothing, [], nothing.copy())


@pytest.mark.parametrize("module", [NATIVE, NUMBA])
def test_a_cache_whose_numbers_are_not_aligned_is_refused(module: Any) -> None:
    packed = np.zeros((2, 2, 6), dtype=[("tag", "u1"), ("keys", "<f4", (32,))])["keys"]
    layer = Layer(np.random.default_rng(9)).on(module)
    x, queries = np.zeros((2, 64), np.float32), np.zeros((2, 4, 32), np.float32)
    with pytest.raises(ValueError, match="keys is not aligned in memory"):
        layer.attend(x, 2, queries, [(packed, packed, np.empty(0, np.uint8), 1)], np.empty_like(x))


def test_steps_that_share_a_call_give_the_formulas_results() -> None:
    rng = np.random.default_rng(10)
    layer = Layer(rng)
    steps = [Step(rng, layer, **kind) for kind in STEPS]
    parts = zip(*(step.expected(layer) for step in steps), strict=True)
    for found, expected in zip(run_together(steps, layer, NATIVE), map(np.concatenate, parts), strict=True):
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_that_share_a_call_give_the_bits_that_each_gives_alone(kind: dict[str, Any]) -> None:
    rng = np.random.default_rng(11)
    layer = Layer(rng, **kind)
    # Caches of one token, of one that is empty but for the new tokens, and of so many that threads share the work.
    others: tuple[dict[str, Any], ...] = ({"sequences": 1, "past": 0}, {"past": 900})
    steps = [Step(rng, layer, **kind) for kind in (*STEPS, *others)]
    alone = zip(*(step.run(layer, NUMBA) for step in steps), strict=True)
    expected = [np.concatenate(parts).tobytes() for parts in alone]
    assert [array.tobytes() for array in run_together(steps, layer, NUMBA)] == expected
    chosen = NATIVE.isa()
    try:
        for isa in NATIVE.isas():
            NATIVE.set_isa(isa)
            for threads in (1, 3):
                together = run_together(steps, layer, NATIVE, threads)
                assert [array.tobytes() for array in together] == expected, isa
    finally:
        NATIVE.set_isa(chosen)


def test_a_long_past_is_attended_on_several_threads_with_the_same_bits() -> None:
    rng = np.random.default_rng(2)
    layer = Layer(rng)
    given = Step(rng, layer, sequences=4, past=700)
    one, four = given.run(layer, NATIVE), given.run(layer, NATIVE, threads=4)
    assert all(np.array_equal(a, b) for a, b in zip(one, four, strict=True))


@pytest.mark.parametrize("module", [NATIVE, NUMBA])
@pytest.mark.parametrize("activation", [0, 1])
def test_extreme_inputs_saturate(module: Any, activation: int) -> None:
    rng = np.random.default_rng(3)
    layer = Layer(rng, norms=(), activation=activation)
    given = Step(rng, layer)
    given.x *= np.float32(1e4)
    for past in given.past:
        past *= np.float32(1e3)
    y = given.run(layer, module)[3]
    assert np.isfinite(y).all()
    given.x[0, 3] = np.nan
    y = given.run(layer, module)[3]
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()


@pytest.mark.parametrize("module", [NATIVE, NUMBA])
def test_a_token_that_sees_nothing_gets_no_attention(module: Any) -> None:
    rng = np.random.default_rng(4)
    layer = Layer(rng)
    given = Step(rng, layer)
    given.visible = np.ones((2, given.tokens), np.uint8)
    given.visible[1] = 0
    y = given.run(layer, module)[3]
    expected = given.expected(layer)[3]
    assert np.abs(y - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("module", [NATIVE, NUMBA])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, "heads is 0, it must be from 1 to 65536"),
        ({"kv_heads": 3}, "heads is 4, it must be a multiple of kv_heads"),
        ({"head_size": 24}, "head_size is 24, it must be a multiple of 16"),
        ({"head_size": 48}, r"query is \[128, 64\], it must be \[192, 64\]"),
        ({"activation": 2}, "activation 2 is unknown; 0 is silu, 1 is gelu_tanh"),
        ({"epsilon": math.nan}, "epsilon of .* must be finite and at least 0"),
        ({"scales": {"queries": np.ones(64, np.float32)}}, "queries has 64 values, the layer needs 32"),
        ({"biases": {"down": np.ones(63, np.float32)}}, "a bias has 63 values, the layer needs 64"),
    ],
)
def test_a_layer_whose_parts_do_not_fit_is_refused(module: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layer(np.random.default_rng(5)).on(module, **changes)


@pytest.mark.parametrize("module", [NATIVE, NUMBA])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 3}, "x has 128 values, the layer needs 192"),
        ({"rows": -1}, "rows is -1, it must be from 0 to 65536"),
        ({"queries": np.zeros(5, np.float32)}, "queries has 5 values, the layer needs 256"),
        ({"keys": np.zeros((2, 2, 6, 32))}, r"keys must be float32 \[sequences, kv_heads, tokens, head_size\]"),
        ({"keys": np.zeros((2, 2, 7, 32), np.float32)}, "keys and values differ in shape"),
        ({"visible": np.zeros(5, np.uint8)}, "visible has 5 values, the layer needs 12"),
        ({"out": np.zeros(5, np.float32)}, "y has 5 values, the layer needs 128"),
        ({"threads": 0}, "threads is 0, it must be from 1 to 256"),
        ({"new": 2}, "rows is 2, the caches have more new tokens"),
        ({"new": 0}, "rows is 2, the caches have 0 new tokens"),
        ({"new": -1}, "new_tokens is -1, it must be from 0 to 65536"),
        ({"new": 7}, "a sequence has more new tokens than tokens: 7 of 6"),
    ],
)
def test_arguments_that_do_not_fit_the_layer_are_refused(module: Any, changes: dict[str, Any], message: str) -> None:
    layer = Layer(np.random.default_rng(6)).on(module)
    arguments: dict[str, Any] = {
        "x": np.zeros((2, 64), np.float32),
        "rows": 2,
        "queries": np.zeros((2, 4, 32), np.float32),
        "out": np.empty((2, 64), np.float32),
        "threads": 1,
    }
    cache: dict[str, Any] = {
        "keys": np.zeros((2, 2, 6, 32), np.float32),
        "values": np.zeros((2, 2, 6, 32), np.float32),
        "visible": np.empty(0, np.uint8),
        "new": 1,
    }
    cache = {name: changes.get(name, value) for name, value in cache.items()}
    arguments = {name: changes.get(name, value) for name, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        layer.attend(caches=[tuple(cache.values())], **arguments)
