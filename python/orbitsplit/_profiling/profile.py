"""Profiles: bytes, FLOP and, if measured, seconds of each layer of a model. Plain data; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from orbitsplit._io.json_document import data_of, document_of, load_document, write_document
from orbitsplit._io.validation import (
    check_count,
    check_keys,
    check_number,
    check_string,
    list_of,
    records_of,
    tuple_of,
)

from .workload import Workload

FORMAT = "orbitsplit-profile"
VERSION = 1

# A receiver has four buffers of at most 4 MiB, of which the part that messages fill is resident.
_BUFFERS, _BUFFER_BYTES = 4, 4 << 20
# Waiting activations of each micro-batch. Only one waits at a time, but measured peaks were up to 15 % above a count of
# one, as if the memory of the received activation were not reused for the one that is sent. In addition one activation
# is computed, and one encoded.
_WAITING, _PASSING = 2, 2
# A token that is sent as it is.
_TOKEN_BYTES = 8
# Larger memory blocks are returned to the system when freed (glibc: the maximum of the dynamic M_MMAP_THRESHOLD).
_KEPT_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """Costs of one layer; times and FLOP are of one forward of the profile's `batch_size` sequences.

    Prefill is the whole prompt or image at once, decode is one token after `prompt_tokens` tokens of context. A model
    that does not generate has no cache, no `decode_s`, and a `decode_flop` of 0.

    Attributes:
        name: "embeddings", "layer 0", ... or "head".
        weight_bytes: Bytes of the weights.
        kv_bytes_per_token: Bytes of keys and values per token and sequence.
        kv_tokens_max: The cache keeps at most this many tokens (a sliding window); None: all.
        prefill_flop: FLOP of a prefill.
        decode_flop: FLOP of a token.
        prefill_s: Seconds of a prefill; None if not measured.
        decode_s: Seconds of a token; None if not measured.
        workspace_bytes: Peak of the transient activations, the received one included; None: that of the profile.

    Raises:
        ValueError: A number is negative or not finite.
        TypeError: A field has another type.
    """

    name: str
    weight_bytes: int
    kv_bytes_per_token: int
    kv_tokens_max: int | None
    prefill_flop: int
    decode_flop: int
    prefill_s: float | None = None
    decode_s: float | None = None
    workspace_bytes: int | None = None

    def __post_init__(self) -> None:
        check_string("the name of a layer", self.name)
        _check_amounts(self, self.name, [f.name for f in fields(self) if f.name != "name"])

    def kv_bytes(self, tokens: int) -> int:
        """Return the bytes of keys and values of one sequence of `tokens` tokens in this layer."""
        return self.kv_bytes_per_token * (tokens if self.kv_tokens_max is None else min(tokens, self.kv_tokens_max))


@dataclass(frozen=True, slots=True)
class ChunkTimes:
    """Seconds of a forward that takes a part of a prompt, with the keys and values of the tokens before it.

    Attributes:
        tokens: Tokens of the part.
        first_s: Seconds of each layer for the first tokens of the prompt.
        last_s: Seconds of each layer for the last tokens of the prompt.
        overhead_s: Seconds of the forward in any stage in addition to its layers.

    Raises:
        ValueError: A number is out of range, or there is not one for each layer.
        TypeError: A field has another type.
    """

    tokens: int
    first_s: tuple[float, ...]
    last_s: tuple[float, ...]
    overhead_s: float = 0.0

    def __post_init__(self) -> None:
        check_count("tokens of a chunk", self.tokens, 1)
        for name in ("first_s", "last_s"):
            object.__setattr__(self, name, tuple_of(name, getattr(self, name)))
            for k, seconds in enumerate(getattr(self, name)):
                _check_amount(f"{name}[{k}] of chunks of {self.tokens} tokens", seconds)
        _check_amounts(self, f"chunks of {self.tokens} tokens", ["overhead_s"])
        if len(self.first_s) != len(self.last_s):
            raise ValueError(f"first_s has {len(self.first_s)} numbers, last_s {len(self.last_s)}")

    def earlier_s(self, chunks: int) -> tuple[float, ...]:
        """Return the mean seconds of each layer for the chunks of a prompt before its last one, if there are `chunks`.

        Each attends to as many tokens more as the next. Only the last one runs the head, the last layer.
        """
        share = (chunks - 2) / (2 * (chunks - 1))
        *layers, _ = zip(self.first_s, self.last_s, strict=True)
        return (*(first + share * (last - first) for first, last in layers), 0.0)


@dataclass(frozen=True, slots=True)
class RowTimes:
    """Seconds of a decode step of so many rows: one token of each, behind the prompt of each.

    Attributes:
        rows: Rows of the step.
        decode_s: Seconds of each layer.
        overhead_s: Seconds of the forward in any stage in addition to its layers.

    Raises:
        ValueError: A number is out of range.
        TypeError: A field has another type.
    """

    rows: int
    decode_s: tuple[float, ...]
    overhead_s: float = 0.0

    def __post_init__(self) -> None:
        check_count("rows of a decode step", self.rows, 1)
        object.__setattr__(self, "decode_s", tuple_of("decode_s", self.decode_s))
        for k, seconds in enumerate(self.decode_s):
            _check_amount(f"decode_s[{k}] of {self.rows} rows", seconds)
        _check_amounts(self, f"{self.rows} rows", ["overhead_s"])


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Costs of a model by layer: the embeddings, the transformer layers, the head (with norms and pooler).

    Attributes:
        model: Name or path of the model.
        architecture: Class of transformers.
        dtype: Name of the dtype of weights and activations.
        prompt_tokens: Tokens of a sequence; of a model of images, the tokens that an image becomes.
        batch_size: Sequences of a forward.
        hidden_size: Width of the activation.
        layers: The layers, embeddings first and head last.
        cut_bytes_per_token: Bytes of the uncompressed activation per token and sequence, the same at every cut.
        workspace_bytes: The largest peak of transient activations of a layer, the received one included; logits are of
            the last position only if the model generates.
        tied_bytes: Bytes of the weights that embeddings and head share; they count in both layers, because stages on
            two nodes hold a copy each. Where embeddings of an encoder and of a decoder share them too, those count in
            both wherever they are.
        overhead_prefill_s: Seconds of a prefill of any stage in addition to its layers (masks, rotary embeddings); 0 if
            not measured.
        overhead_decode_s: The same of a token.
        threads: Torch threads of the measurement; None if not measured.
        machine: The machine of the measurement; None if not measured.
        library_bytes: Memory of the libraries of a process that loads and runs a stage; None: the memory of processes
            is not counted.
        chunks: What prompts cost in chunks of several lengths, in increasing order; empty if not measured, or if the
            model takes prompts only as a whole.
        rows: What a token costs in steps of other numbers of rows than `batch_size`, in increasing order; empty if not
            measured.
        encoder_layers: Layers of the encoder, of a model that has one beside its decoder; None: it has none. The layer
            behind them has the decoder's embeddings. A prefill is then that of the encoder and of the decoder's first
            token, and token steps have no costs in the encoder.

    Raises:
        ValueError: A number is out of range, or there are fewer than three layers.
        TypeError: A field has another type.
    """

    model: str
    architecture: str
    dtype: str
    prompt_tokens: int
    batch_size: int
    hidden_size: int
    layers: tuple[LayerProfile, ...]
    cut_bytes_per_token: int
    workspace_bytes: int
    tied_bytes: int
    overhead_prefill_s: float = 0.0
    overhead_decode_s: float = 0.0
    threads: int | None = None
    machine: str | None = None
    library_bytes: int | None = None
    chunks: tuple[ChunkTimes, ...] = ()
    rows: tuple[RowTimes, ...] = ()
    encoder_layers: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple_of("layers", self.layers, LayerProfile))
        object.__setattr__(self, "chunks", tuple_of("chunks", self.chunks, ChunkTimes))
        object.__setattr__(self, "rows", tuple_of("rows", self.rows, RowTimes))
        if len(self.layers) < 3:
            raise ValueError(f"layers are {len(self.layers)}, must be embeddings, at least one layer and a head")
        for name in ("prompt_tokens", "batch_size", "hidden_size", "cut_bytes_per_token"):
            check_count(name, getattr(self, name), 1)
        if self.threads is not None:
            check_count("threads", self.threads, 1)
        names = ("workspace_bytes", "tied_bytes", "overhead_prefill_s", "overhead_decode_s", "library_bytes")
        _check_amounts(self, "the profile", names)
        if self.encoder_layers is not None:
            check_count("encoder_layers", self.encoder_layers, 1)
            if self.encoder_layers > len(self.layers) - 4:
                raise ValueError(
                    f"encoder_layers is {self.encoder_layers}, and of {len(self.layers)} layers at most "
                    f"{len(self.layers) - 4} can be an encoder's"
                )
        self._check_chunks()
        self._check_rows()

    def _check_chunks(self) -> None:
        shortest = 0
        for chunk in self.chunks:
            if not shortest < chunk.tokens < self.prompt_tokens:
                raise ValueError(
                    f"chunks of {chunk.tokens} tokens, must be in increasing order and below the prompt's "
                    f"{self.prompt_tokens}"
                )
            if len(chunk.first_s) != len(self.layers):
                raise ValueError(
                    f"chunks of {chunk.tokens} tokens have times of {len(chunk.first_s)} layers, the profile has "
                    f"{len(self.layers)}"
                )
            shortest = chunk.tokens

    def _check_rows(self) -> None:
        fewest = 0
        for step in self.rows:
            if step.rows <= fewest or step.rows == self.batch_size:
                raise ValueError(
                    f"times of {step.rows} rows, must be in increasing order and of other numbers than the batch_size "
                    f"{self.batch_size}"
                )
            if len(step.decode_s) != len(self.layers):
                raise ValueError(
                    f"{step.rows} rows have times of {len(step.decode_s)} layers, the profile has {len(self.layers)}"
                )
            fewest = step.rows

    @property
    def is_measured(self) -> bool:
        """Whether the layers have measured seconds."""
        return self.threads is not None

    @property
    def generates(self) -> bool:
        """Whether the model generates tokens: others have no costs of decoding."""
        return any(layer.decode_flop > 0 for layer in self.layers)

    @property
    def first_step_layer(self) -> int:
        """The first layer that runs in token steps: behind those of an encoder, which run once."""
        return 0 if self.encoder_layers is None else self.encoder_layers + 1

    def cut_prefill_bytes(self, cut: int) -> int:
        """Return the bytes of the activation of a sequence that crosses the cut after a layer in a prefill.

        In a decoder that has an encoder it is the encoder's output, and the first token's behind that.
        """
        first_tokens = int(self.encoder_layers is not None and cut >= self.first_step_layer)
        return self.cut_bytes_per_token * (self.prompt_tokens + first_tokens)

    def cut_step_bytes(self, cut: int) -> int:
        """Return the bytes that cross the cut after a layer for a token step of a sequence.

        Stages of an encoder pass the token itself on.
        """
        return _TOKEN_BYTES if cut < self.first_step_layer else self.cut_bytes_per_token

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of the whole model on one node, tied weights counted once."""
        return sum(layer.weight_bytes for layer in self.layers) - self.tied_bytes

    def stage_workspace_bytes(self, start: int, stop: int) -> int:
        """Return the peak of transient activations in the layers [start, stop), in bytes."""
        sizes = (layer.workspace_bytes for layer in self.layers[start:stop])
        return max(self.workspace_bytes if size is None else size for size in sizes)

    def process_bytes(self, workload: Workload, workspace_bytes: int, prompts_under_way: int | None = None) -> int:
        """Return the bytes of a stage's process in addition to the interpreter, weights, cache and workspace.

        It consists of the libraries that a stage loads; the waiting activations (of each micro-batch whose prompt is
        under way, at most `prompts_under_way`, the received one, or its input, and the sent one, which is kept until
        the next one of its group; of the others those of a token step); the buffers of a receiver; and the memory that
        the allocator keeps of earlier workspaces, about one more of them up to the size of the largest block that it
        keeps. 0 if `library_bytes` is None.
        """
        if self.library_bytes is None:
            return 0
        of_token = self.cut_bytes_per_token * workload.batch_size
        activation = of_token * workload.prompt_tokens
        prompts = min(workload.micro_batches, prompts_under_way or workload.micro_batches)
        waiting = (_WAITING * prompts + _PASSING) * activation + _BUFFERS * min(activation, _BUFFER_BYTES)
        waiting += _WAITING * (workload.micro_batches - prompts) * of_token
        return self.library_bytes + waiting + min(workspace_bytes, _KEPT_BYTES)

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON-ready data; `from_dict` takes it back."""
        data = asdict(self)
        for key in ("chunks", "rows", "encoder_layers"):
            if not data[key]:
                del data[key]
        return document_of(FORMAT, VERSION, data)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ModelProfile:
        """Make a profile from what `to_dict` returned.

        Raises:
            ValueError: A key is missing, unknown or has a wrong value; the message names it.
        """
        values = data_of(FORMAT, VERSION, document)
        check_keys("the profile", values, cls)
        layers = records_of("layers", list_of("layers", values["layers"]), LayerProfile)
        chunks = records_of("chunks", list_of("chunks", values.get("chunks", [])), ChunkTimes)
        rows = records_of("rows", list_of("rows", values.get("rows", [])), RowTimes)
        return cls(**{**values, "layers": layers, "chunks": chunks, "rows": rows})

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON."""
        write_document(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> ModelProfile:
        """Read a profile that `save` wrote.

        Raises:
            ValueError: The file is not JSON or not a profile.
        """
        return load_document(path, cls.from_dict)


def _check_amounts(record: Any, where: str, names: Sequence[str]) -> None:
    """Raise unless each of the named fields is None, or finite and not negative."""
    for name in names:
        value = getattr(record, name)
        if value is not None:
            _check_amount(f"{where}.{name}", value)


def _check_amount(what: str, value: Any) -> None:
    check_number(what, value)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{what} is {value}, must be finite and at least 0")
