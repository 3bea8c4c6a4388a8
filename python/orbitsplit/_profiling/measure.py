"""Profiles made from a configuration, and measured on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers.configuration_utils import PreTrainedConfig

from orbitsplit._io.device_names import CPU, check_device_name
from orbitsplit._io.dtypes import check_dtype
from orbitsplit._io.validation import check_boolean, check_callable, check_count
from orbitsplit._models.device import device_title
from orbitsplit._models.source import model_class, open_model, read_config
from orbitsplit._models.verdicts import check_architecture

from .profile import ChunkTimes, LayerProfile, ModelProfile, RowTimes
from .static_cost import LayerCosts, count_costs
from .timing import LayerTimes, machine_name, measure_times

# What torch and transformers load with a stage and its first forwards, in addition to what a worker has loaded that
# knows the model's layout: 3 to 8 MB of torch 2.13, transformers 5.23 (`python -m benches.studies.stage_memory`).
_LIBRARY_BYTES = 8_000_000


def profile(
    model: str | Path | PreTrainedConfig,
    *,
    prompt_tokens: int = 512,
    batch_size: int = 1,
    dtype: str = "float32",
    measure: bool = False,
    threads: int = 1,
    device: str = CPU,
    rows: int = 32,
    progress: Callable[[str, float], None] | None = None,
) -> ModelProfile:
    """Profile the layers of a model: a causal language model, an encoder, both, or a vision transformer.

    Without `measure` only the configuration is read, so that models of any size take about a second. With `measure` the
    whole model is loaded and run.

    Args:
        model: A model directory, a `.gguf` file, a hub id or a configuration of transformers.
        prompt_tokens: Tokens of a prompt. It is ignored for a model of images, whose profile has the number of tokens
            of an image of the configuration's size.
        batch_size: Sequences, or images, of a forward.
        dtype: "float32", "float16" or "bfloat16".
        measure: Measure the seconds of each layer on this machine: means without outliers, and with one thread
            processor seconds, so that other load on the machine has little effect. Prompts are measured as a whole and,
            where the model can run them so, in chunks of several lengths.
        threads: Torch threads of the measurement.
        device: What is measured, as torch names it: "cpu", "cuda", "cuda:1" or "mps". Seconds include the copies to and
            from its memory; nodes with a slowdown are compared with it.
        rows: Decode steps of 1, 2, 4, ... rows are measured, up to this number, behind a cache of the prompt for each.
            Plans know then what rows in one forward save.
        progress: Called with a text for each step, and the fraction that is done.

    Example:
        >>> osp.profile("path-or-hub-id", prompt_tokens=256).layers[1].weight_bytes     # doctest: +SKIP
        22294528

    Raises:
        ValueError: The architecture cannot be split, the model takes fewer tokens, a count is below 1, the dtype is
            unknown, a configuration is to be measured, which has no weights, or torch finds no such device.
    """
    check_callable("progress", progress)
    _check_arguments(model, prompt_tokens, batch_size, dtype, measure, threads, rows)
    check_device_name("device", device)
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
        dtype=getattr(torch, dtype),
        threads=threads,
        device=device,
        most_rows=rows,
        progress=report,
    )
    report("profiled", 1.0)
    return _with_times(found, times, threads, device)


def _counted(config: PreTrainedConfig, name: str, prompt_tokens: int, batch_size: int, dtype: str) -> ModelProfile:
    torch_dtype = getattr(torch, dtype)
    check_architecture(config)
    costs = count_costs(config, prompt_tokens=prompt_tokens, batch_size=batch_size, dtype=torch_dtype)
    return ModelProfile(
        model=name,
        architecture=model_class(config).__name__,
        dtype=dtype,
        prompt_tokens=costs.tokens,
        batch_size=batch_size,
        hidden_size=costs.hidden_size,
        layers=_layer_profiles(costs),
        cut_bytes_per_token=costs.hidden_size * torch_dtype.itemsize,
        workspace_bytes=max(costs.workspace_bytes),
        tied_bytes=costs.tied_bytes,
        library_bytes=_LIBRARY_BYTES,
        encoder_layers=costs.encoder_layers,
    )


def _layer_profiles(costs: LayerCosts) -> tuple[LayerProfile, ...]:
    names = costs.names
    if costs.encoder_layers is not None:
        of_decoder = range(len(names) - 3 - costs.encoder_layers)
        between = [f"encoder layer {index}" for index in range(costs.encoder_layers)]
        between += ["decoder embeddings", *(f"decoder layer {index}" for index in of_decoder)]
        names = ("embeddings", *between, "head")
    columns = (costs.weight_bytes, costs.kv_bytes_per_token, costs.kv_tokens_max, costs.prefill_flop, costs.decode_flop)
    layers = (LayerProfile(*row) for row in zip(names, *columns, strict=True))
    pairs = zip(layers, costs.workspace_bytes, strict=True)
    return tuple(replace(layer, workspace_bytes=workspace_bytes) for layer, workspace_bytes in pairs)


def _with_times(found: ModelProfile, times: LayerTimes, threads: int, device: str) -> ModelProfile:
    decode_s = times.decode_s or (None,) * len(found.layers)
    timed = zip(found.layers, times.prefill_s, decode_s, strict=True)
    return replace(
        found,
        layers=tuple(replace(layer, prefill_s=prefill, decode_s=decode) for layer, prefill, decode in timed),
        overhead_prefill_s=times.overhead_prefill_s,
        overhead_decode_s=times.overhead_decode_s,
        chunks=tuple(ChunkTimes(*row) for row in times.chunks),
        rows=tuple(RowTimes(*row) for row in times.rows),
        threads=threads,
        machine=machine_name() if (title := device_title(device)) is None else f"{title} in {machine_name()}",
    )


def _check_arguments(
    model: object, prompt_tokens: int, batch_size: int, dtype: str, measure: bool, threads: int, rows: int
) -> None:
    counts = {"prompt_tokens": prompt_tokens, "batch_size": batch_size, "threads": threads, "rows": rows}
    for name, value in counts.items():
        check_count(name, value, 1)
    check_dtype("dtype", dtype)
    check_boolean("measure", measure)
    if measure and isinstance(model, PreTrainedConfig):
        raise ValueError("a configuration has no weights to measure: give a model directory or a hub id")
