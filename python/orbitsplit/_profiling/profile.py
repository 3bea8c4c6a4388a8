"""What each layer of a model costs: bytes, FLOP and, where measured, seconds. Plain data; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from orbitsplit._io.json_document import data_of, document_of, load_document, write_document
from orbitsplit._io.validation import check_integer, check_keys, check_number, check_string, list_of, records_of

from .workload import Workload

FORMAT = "orbitsplit-profile"
VERSION = 1

# A receiver has four buffers, of which the part that messages reach is resident, at most 4 MiB each.
_BUFFERS, _BUFFER_BYTES = 4, 4 << 20
# Activations of a micro-batch that wait. One at a time does, but peaks measured with one were up to 15 % above, as if
# the memory of what arrived were not used again for what is sent. Beside them one is computed, and put in its frame.
_WAITING, _PASSING = 2, 2
# Memory blocks above this are given back when they are freed (glibc: the most that M_MMAP_THRESHOLD becomes by itself).
_KEPT_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """Costs of one layer; times and FLOP are of one forward of the profile's `batch_size` sequences.

    Prefill is the whole prompt or image at once, decode one token with `prompt_tokens` tokens of context. The cache
    keeps `kv_bytes_per_token` per token and sequence, of the last `kv_tokens_max` tokens only where that is not None.
    Seconds are None in a profile that was not measured. A model that does not generate has no cache, `decode_flop` 0
    and no `decode_s`. `workspace_bytes` is the peak of transient activations, what the stage received included, None
    in a profile that knows but the largest.
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
        """Return the bytes of keys and values that one sequence of `tokens` tokens keeps in this layer."""
        return self.kv_bytes_per_token * (tokens if self.kv_tokens_max is None else min(tokens, self.kv_tokens_max))


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Costs of a model by layer: the embeddings, the transformer layers, the head (with norms and pooler).

    They are for `prompt_tokens` tokens a sequence; of a model of images, that is what an image becomes.
    `cut_bytes_per_token` is the uncompressed activation per token and sequence, the same at every cut.
    `workspace_bytes` is the peak of transient activations in the hungriest layer, what the stage received included,
    with logits of the last position only where the model generates. `tied_bytes` are weights that the
    embeddings and the head share, counted in both because stages on two nodes hold a copy each. Every forward of a
    stage, of whatever layers, takes `overhead_prefill_s` or `overhead_decode_s` seconds beside its layers' (masks,
    rotary embeddings; 0 if not measured). `threads` and `machine` say where seconds were measured, if they were.
    `library_bytes` are what the libraries of a process take once they load and run a stage, None where nothing is
    known of the process, and nothing counted.
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

    def __post_init__(self) -> None:
        if len(self.layers) < 3:
            raise ValueError(f"layers are {len(self.layers)}, must be embeddings, at least one layer and a head")
        for name in ("prompt_tokens", "batch_size", "hidden_size", "cut_bytes_per_token"):
            check_integer(name, getattr(self, name))
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        names = ("workspace_bytes", "tied_bytes", "overhead_prefill_s", "overhead_decode_s", "library_bytes")
        _check_amounts(self, "the profile", names)

    @property
    def is_measured(self) -> bool:
        """Whether the layers have seconds."""
        return self.threads is not None

    @property
    def generates(self) -> bool:
        """Whether it is of a model that generates tokens: others have no costs of decoding."""
        return any(layer.decode_flop > 0 for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the whole model on one node, shared weights counted once."""
        return sum(layer.weight_bytes for layer in self.layers) - self.tied_bytes

    def stage_workspace_bytes(self, start: int, stop: int) -> int:
        """Return the peak of transient activations in the layers [start, stop)."""
        sizes = (layer.workspace_bytes for layer in self.layers[start:stop])
        return max(self.workspace_bytes if size is None else size for size in sizes)

    def process_bytes(self, workload: Workload, workspace_bytes: int) -> int:
        """Return what the process of a stage takes beside weights, cache, workspace and what it starts with.

        Libraries that are loaded with the stage, the activations that wait between stages (of each micro-batch the one
        that arrived, or its input, and the one that was sent, which is kept until the next of its group), the buffers
        of a receiver, and what the allocator keeps of workspaces gone by, which is about another one, up to where it
        keeps no block. 0 where `library_bytes` is None.
        """
        if self.library_bytes is None:
            return 0
        activation = self.cut_bytes_per_token * workload.prompt_tokens * workload.batch_size
        waiting = (_WAITING * workload.micro_batches + _PASSING) * activation + _BUFFERS * min(
            activation, _BUFFER_BYTES
        )
        return self.library_bytes + waiting + min(workspace_bytes, _KEPT_BYTES)

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON-ready data; `from_dict` takes it back."""
        return document_of(FORMAT, VERSION, asdict(self))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ModelProfile:
        """Make a profile from what `to_dict` returned.

        Raises:
            ValueError: A key is missing, unknown or has a wrong value; the message names it.
        """
        values = data_of(FORMAT, VERSION, document)
        check_keys("the profile", values, cls)
        layers = records_of("layers", list_of("layers", values["layers"]), LayerProfile)
        return cls(**{**values, "layers": layers})

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
    """Raise unless the named fields are finite numbers, not negative, or None."""
    for name in names:
        value = getattr(record, name)
        if value is None:
            continue
        check_number(f"{where}.{name}", value)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{where}.{name} is {value}, must be finite and at least 0")
