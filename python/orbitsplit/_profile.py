"""What each layer of a model costs: bytes, FLOP and, measured on this machine, seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig

from ._layer_cost import LayerCosts, count_costs
from ._layer_time import LayerTimes, machine_name, measure_times
from ._model import model_class, open_model, read_config

FORMAT = "orbitsplit-profile"
VERSION = 1

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """Costs of one layer; times and FLOP are of one forward of the profile's `batch_size` sequences.

    Prefill is the whole prompt at once, decode one token with `prompt_tokens` tokens of context. The cache keeps
    `kv_bytes_per_token` per token and sequence, of the last `kv_tokens_max` tokens only where that is not None.
    Seconds are None in a profile that was not measured.
    """

    name: str
    weight_bytes: int
    kv_bytes_per_token: int
    kv_tokens_max: int | None
    prefill_flop: int
    decode_flop: int
    prefill_s: float | None = None
    decode_s: float | None = None

    def kv_bytes(self, tokens: int) -> int:
        """Return the bytes of keys and values that one sequence of `tokens` tokens keeps in this layer."""
        return self.kv_bytes_per_token * (tokens if self.kv_tokens_max is None else min(tokens, self.kv_tokens_max))


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Costs of a causal language model by layer: the embeddings, the transformer layers, the head.

    `cut_bytes_per_token` is the uncompressed activation per token and sequence, the same at every cut.
    `workspace_bytes` is the peak of transient activations in the hungriest layer. `tied_bytes` are weights that the
    embeddings and the head share, counted in both because stages on two nodes hold a copy each. Every forward of a
    stage, of whatever layers, takes `overhead_prefill_s` or `overhead_decode_s` seconds beside its layers' (masks,
    rotary embeddings; 0 if not measured). `threads` and `machine` say where seconds were measured, if they were.
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

    @property
    def is_measured(self) -> bool:
        """Whether the layers have seconds."""
        return self.threads is not None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the whole model on one node, shared weights counted once."""
        return sum(layer.weight_bytes for layer in self.layers) - self.tied_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain data for JSON."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelProfile:
        """Make a profile from what `to_dict` returned; raises ValueError naming a missing or unknown key."""
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise ValueError(
                f"not a profile: expected format {FORMAT!r} version {VERSION}, "
                f"got {data.get('format')!r} version {data.get('version')!r}"
            )
        rest = {key: value for key, value in data.items() if key not in ("format", "version")}
        _check_keys(cls, rest, "profile")
        for index, layer in enumerate(rest["layers"]):
            _check_keys(LayerProfile, layer, f"layers[{index}]")
        return cls(**{**rest, "layers": tuple(LayerProfile(**layer) for layer in rest["layers"])})

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ModelProfile:
        """Read a profile that `save` wrote; raises ValueError for anything else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not a profile: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{path} is not a profile: expected a JSON object")
        return cls.from_dict(data)


def profile(
    model: str | Path | PreTrainedConfig,
    *,
    prompt_tokens: int = 512,
    batch_size: int = 1,
    dtype: str = "float32",
    measure: bool = False,
    threads: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> ModelProfile:
    """Find out what each layer of a causal language model costs.

    `model` is a model directory, a `.gguf` file, a hub id or a transformers configuration. Without `measure` only
    the configuration is read, so models of any size take about a second. With it the whole model is loaded and
    run, and the seconds are medians with `threads` torch threads; with one thread they are processor seconds, so
    that other work on the machine counts little.

    Example:
        >>> osp.profile("path-or-hub-id", prompt_tokens=256).layers[1].weight_bytes     # doctest: +SKIP
        22294528

    Raises:
        ValueError: An architecture that cannot be split, a count below 1, an unknown dtype, or a configuration to
            be measured, which has no weights.
    """
    _check_arguments(model, prompt_tokens, batch_size, dtype, measure, threads)
    report = progress or (lambda _step, _fraction: None)
    source = model if isinstance(model, PreTrainedConfig) else open_model(model, progress=progress)
    config = read_config(source)
    report("counting bytes and FLOP", 0.0)
    name = config.name_or_path or config.model_type if isinstance(model, PreTrainedConfig) else str(model)
    found = _counted(config, name, prompt_tokens, batch_size, dtype)
    if not measure or isinstance(source, PreTrainedConfig):
        report("profiled", 1.0)
        return found
    times = measure_times(
        source,
        prompt_tokens=prompt_tokens,
        batch_size=batch_size,
        dtype=DTYPES[dtype],
        threads=threads,
        progress=report,
    )
    report("profiled", 1.0)
    return _with_times(found, times, threads)


def _counted(config: PreTrainedConfig, name: str, prompt_tokens: int, batch_size: int, dtype: str) -> ModelProfile:
    costs = count_costs(config, prompt_tokens=prompt_tokens, batch_size=batch_size, dtype=DTYPES[dtype])
    return ModelProfile(
        model=name,
        architecture=model_class(config).__name__,
        dtype=dtype,
        prompt_tokens=prompt_tokens,
        batch_size=batch_size,
        hidden_size=costs.hidden_size,
        layers=_layer_profiles(costs),
        cut_bytes_per_token=costs.hidden_size * DTYPES[dtype].itemsize,
        workspace_bytes=costs.workspace_bytes,
        tied_bytes=costs.tied_bytes,
    )


def _layer_profiles(costs: LayerCosts) -> tuple[LayerProfile, ...]:
    transformer_layers = len(costs.weight_bytes) - 2
    names = ["embeddings", *(f"layer {index}" for index in range(transformer_layers)), "head"]
    columns = (costs.weight_bytes, costs.kv_bytes_per_token, costs.kv_tokens_max, costs.prefill_flop, costs.decode_flop)
    return tuple(LayerProfile(*row) for row in zip(names, *columns, strict=True))


def _with_times(found: ModelProfile, times: LayerTimes, threads: int) -> ModelProfile:
    timed = zip(found.layers, times.prefill_s, times.decode_s, strict=True)
    return replace(
        found,
        layers=tuple(replace(layer, prefill_s=prefill, decode_s=decode) for layer, prefill, decode in timed),
        overhead_prefill_s=times.overhead_prefill_s,
        overhead_decode_s=times.overhead_decode_s,
        threads=threads,
        machine=machine_name(),
    )


def _check_arguments(
    model: object, prompt_tokens: int, batch_size: int, dtype: str, measure: bool, threads: int
) -> None:
    for name, value in (("prompt_tokens", prompt_tokens), ("batch_size", batch_size), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name} is {value}, it must be at least 1")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if measure and isinstance(model, PreTrainedConfig):
        raise ValueError("a configuration has no weights to measure: give a model directory or a hub id")


def _check_keys(cls: Any, data: Any, where: str) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} is {data!r}, expected an object")
    known = {field.name for field in fields(cls)}
    for key in (*sorted(known - data.keys()), *sorted(data.keys() - known)):
        raise ValueError(f"{where}: {'unknown' if key in data else 'missing'} key {key!r}")
