"""One layer of a decoder on quantised weights; the counterpart of decoder.cpp and bind_decoder.cpp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orbitsplit._numba.codec.frame import check_threads, view_bytes
from orbitsplit._numba.weights.weights import multiply, quantized_bytes, singles

from .rows import activated, attended, normalised, rotated

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from orbitsplit._numba.weights.layout import Singles

_MOST_ROWS = _MOST_HEADS = 1 << 16
_MOST_TOKENS, _MOST_COLUMNS = 1 << 28, 1 << 31
_HEAD_UNIT = 16
_NORMS_OF_HEADS = ("queries", "keys")


class DecoderLayer:
    """A layer on arrays that it keeps: matrices are (data, format, rows, columns)."""

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_size: int,
        attention_scale: float,
        activation: int,
        epsilon: float,
        matrices: Mapping[str, tuple[Any, int, int, int]],
        biases: Mapping[str, Buffer],
        scales: Mapping[str, Buffer],
    ) -> None:
        self._heads, self._kv_heads, self._head_size = heads, kv_heads, head_size
        self._attention_scale, self._activation, self._epsilon = attention_scale, activation, epsilon
        self._matrices: dict[str, tuple[Any, int, int, int]] = {
            name: (view_bytes(data), format, rows, columns) for name, (data, format, rows, columns) in matrices.items()
        }
        self._biases = {name: singles(bias, name) for name, bias in biases.items()}
        self._scales = {name: singles(scale, name) for name, scale in scales.items()}
        self._check()

    def project(
        self,
        x: Buffer,
        rows: int,
        cosines: Buffer,
        sines: Buffer,
        queries: Buffer,
        keys: Buffer,
        values: Buffer,
        threads: int = 1,
    ) -> None:
        """Write queries, keys and values of new tokens, queries and keys rotated, into memory."""
        hidden = self._rows(x, rows)
        check_threads(threads)
        size, of_keys = self._head_size, self._kv_heads * self._head_size
        angles = [
            _sized(name, a, rows * size).reshape(rows, size) for name, a in (("cosines", cosines), ("sines", sines))
        ]
        of_queries = _sized("queries", queries, rows * self._heads * size)
        outputs = {"query": of_queries, "key": _sized("keys", keys, rows * of_keys)}
        outputs["value"] = _sized("values", values, rows * of_keys)
        if not rows:
            return
        with np.errstate(all="ignore"):
            hidden = self._normalised("before_attention", hidden)
            for name, norm in (("query", "queries"), ("key", "keys")):
                heads = self._multiplied(name, hidden).reshape(rows, -1, size)
                outputs[name][:] = rotated(self._normalised(norm, heads), *angles).reshape(-1)
            outputs["value"][:] = self._multiplied("value", hidden).reshape(-1)

    def attend(
        self,
        x: Buffer,
        rows: int,
        queries: Buffer,
        caches: Sequence[tuple[Any, Any, Buffer, int]],
        out: Buffer,
        threads: int = 1,
    ) -> None:
        """Write the layer's output for new tokens into memory; a cache is (keys, values, visible, new tokens)."""
        hidden, y = self._rows(x, rows), singles(out, "out")
        check_threads(threads)
        _check_size("y", y.size, hidden.size)
        of_queries = _sized("queries", queries, rows * self._heads * self._head_size)
        places = [place for cache in caches for place in self._places(*cache)]
        if len(places) != rows:
            found = "more" if len(places) > rows else len(places)
            raise ValueError(f"rows is {rows}, the caches have {found} new tokens")
        if not rows:
            return
        with np.errstate(all="ignore"):
            heads = self._attended(of_queries.reshape(rows, self._heads, self._head_size), places)
            hidden = hidden + self._normalised("after_attention", self._multiplied("output", heads))
            normal = self._normalised("before_mlp", hidden)
            gate = activated(self._activation, self._multiplied("gate", normal), self._multiplied("up", normal))
            y[:] = (hidden + self._normalised("after_mlp", self._multiplied("down", gate))).reshape(-1)

    def _places(self, keys: Any, values: Any, visible: Buffer, new: int) -> list[tuple[Any, Any, Any]]:
        """Return keys and values [kv_heads, tokens, head_size], and which tokens are seen, of each row of a cache."""
        self._check_cache(keys, values)
        sequences, _, tokens, _ = keys.shape
        _check_range("sequences", sequences, 1, _MOST_ROWS)
        _check_range("tokens", tokens, 1, _MOST_TOKENS)
        _check_range("new_tokens", new, 0, _MOST_ROWS)
        if new > tokens:
            raise ValueError(f"a sequence has more new tokens than tokens: {new} of {tokens}")
        seen = _seen(view_bytes(visible), sequences * new, new, tokens)
        return [(keys[row // new], values[row // new], seen[row]) for row in range(sequences * new)]

    def _attended(self, queries: Singles, places: Sequence[tuple[Any, Any, Any]]) -> Singles:
        group = self._heads // self._kv_heads
        out = np.empty_like(queries)
        for row, (keys, values, seen) in enumerate(places):
            for head in range(self._heads):
                of_head = keys[head // group], values[head // group]
                out[row, head] = attended(queries[row, head], *of_head, self._attention_scale, seen)
        return out.reshape(len(queries), -1)

    def _multiplied(self, name: str, x: Singles) -> Singles:
        data, format, rows, columns = self._matrices[name]
        inputs: Any = np.ascontiguousarray(x)
        y: Any = np.empty((len(x), rows), np.float32)
        multiply(data, format, rows, columns, inputs, len(x), y)
        result: Singles = y + self._biases[name] if name in self._biases else y
        return result

    def _normalised(self, name: str, x: Singles) -> Singles:
        return normalised(x, self._scales[name], self._epsilon) if name in self._scales else x

    @property
    def _hidden(self) -> int:
        return int(self._matrices["query"][3])

    def _rows(self, x: Buffer, rows: int) -> Singles:
        _check_range("rows", rows, 0, _MOST_ROWS)
        return _sized("x", x, rows * self._hidden).reshape(rows, self._hidden)

    def _check(self) -> None:
        _check_range("heads", self._heads, 1, _MOST_HEADS)
        _check_range("kv_heads", self._kv_heads, 1, _MOST_HEADS)
        _check_range("head_size", self._head_size, _HEAD_UNIT, _MOST_COLUMNS)
        _check_multiple("head_size", self._head_size, str(_HEAD_UNIT), _HEAD_UNIT)
        _check_multiple("heads", self._heads, "kv_heads", self._kv_heads)
        if self._activation not in (0, 1):
            raise ValueError(f"activation {self._activation} is unknown; 0 is silu, 1 is gelu_tanh")
        hidden, width = self._hidden, int(self._matrices["gate"][2])
        _check_range("hidden", hidden, 1, _MOST_COLUMNS)
        _check_range("the intermediate size", width, 1, _MOST_COLUMNS)
        of_queries, of_keys = self._heads * self._head_size, self._kv_heads * self._head_size
        shapes = {"query": (of_queries, hidden), "key": (of_keys, hidden), "value": (of_keys, hidden)}
        shapes |= {
            "output": (hidden, of_queries),
            "gate": (width, hidden),
            "up": (width, hidden),
            "down": (hidden, width),
        }
        for name, shape in shapes.items():
            self._check_linear(name, shape)
        for name, scale in self._scales.items():
            _check_size(name, scale.size, self._head_size if name in _NORMS_OF_HEADS else hidden)
            if not 0 <= self._epsilon < np.inf:
                raise ValueError(f"epsilon of {name} must be finite and at least 0")

    def _check_linear(self, name: str, shape: tuple[int, int]) -> None:
        data, format, rows, columns = self._matrices[name]
        if (rows, columns) != shape:
            raise ValueError(f"{name} is [{rows}, {columns}], it must be [{shape[0]}, {shape[1]}]")
        needed = quantized_bytes(format, rows, columns)
        if data.size != needed:
            raise ValueError(f"{name} has {data.size} bytes, the shape needs {needed}")
        if name in self._biases:
            _check_size("a bias", self._biases[name].size, rows)

    def _check_cache(self, keys: Any, values: Any) -> None:
        for name, array in (("keys", keys), ("values", values)):
            if array.ndim != 4 or array.dtype != np.float32 or (array.shape[3] > 1 and array.strides[3] != 4):
                raise ValueError(f"{name} must be float32 [sequences, kv_heads, tokens, head_size]")
            if any(stride % 4 for stride in array.strides) or array.ctypes.data % 4:
                raise ValueError(f"{name} is not aligned in memory")
        if keys.shape != values.shape:
            raise ValueError("keys and values differ in shape")
        if (keys.shape[1], keys.shape[3]) != (self._kv_heads, self._head_size):
            raise ValueError(f"keys must have {self._kv_heads} heads of {self._head_size}")


def _seen(visible: Any, rows: int, new: int, tokens: int) -> Any:
    """Return which tokens each row sees, bool [rows, tokens]."""
    if visible.size:
        _check_size("visible", visible.size, rows * tokens)
        return visible.reshape(rows, tokens) != 0
    last = tokens - new + np.arange(rows) % max(1, new)
    return np.arange(tokens) <= last[:, None]


def _sized(name: str, memory: Buffer, count: int) -> Singles:
    view = singles(memory, name)
    _check_size(name, view.size, count)
    return view


def _check_size(name: str, found: int, needed: int) -> None:
    if found != needed:
        raise ValueError(f"{name} has {found} values, the layer needs {needed}")


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}, it must be from {least} to {most}")


def _check_multiple(name: str, value: int, of: str, unit: int) -> None:
    if value % unit:
        raise ValueError(f"{name} is {value}, it must be a multiple of {of}")
