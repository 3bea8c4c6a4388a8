"""Seconds of each layer of a model on this machine, measured in the model itself."""

from __future__ import annotations

import copy
import functools
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from orbitsplit._io.device_names import CPU
from orbitsplit._models.architecture import Layout
from orbitsplit._models.device import device_clock
from orbitsplit._models.encoder_decoder import example_prompt
from orbitsplit._models.encoder_decoder_stage import PromptCache
from orbitsplit._models.layouts import find_layout
from orbitsplit._models.source import example_inputs, read_config, split_config
from orbitsplit._models.stage import StageModel

_PREFILLS = 3
_DECODE_STEPS = 5
# Chunks of a prompt: so many lengths, each half of the one before, and how often each is timed.
_CHUNK_LENGTHS = 4
_CHUNK_REPETITIONS = 2
# How often a step of each number of rows is timed: less behind short prompts, beside which these steps are long.
_ROW_REPETITIONS, _SHORT_PROMPT, _SHORT_ROW_REPETITIONS = 3, 64, 1
# Shorter chunks read the weights too often to be of use.
_SHORTEST_CHUNK = 16
# Nodes wait for messages between forwards, and the first layers after a wait take longer: the more so the longer it is.
# So each timed forward follows a pause, of this many times the one before it; the longest is between the waits in a
# full pipeline and in one that a single micro-batch passes.
_PAUSE, _LONGEST_PAUSE_S = 30.0, 0.15
# What takes so many times the median is no part of a mean.
_OUTLIER = 1.5
# So many layers are colder at the start of a forward than layers behind many others are.
_COLD_LAYERS = 4


@dataclass(frozen=True)
class LayerTimes:
    """Mean seconds of the n + 2 layers, and the overhead of a forward of any stage in addition to its layers.

    A model that does not generate has no `decode_s`, and an `overhead_decode_s` of 0. `chunks` has the fields of
    `ChunkTimes` for each length, `rows` those of `RowTimes` for each number of rows.
    """

    prefill_s: tuple[float, ...]
    decode_s: tuple[float, ...]
    overhead_prefill_s: float
    overhead_decode_s: float
    chunks: tuple[tuple[int, tuple[float, ...], tuple[float, ...], float], ...] = ()
    rows: tuple[tuple[int, tuple[float, ...], float], ...] = ()


def chunk_lengths(prompt_tokens: int) -> tuple[int, ...]:
    """Return the lengths of chunks to measure, in increasing order: powers of two, at most half of the prompt."""
    longest = 1 << max(0, (prompt_tokens // 2).bit_length() - 1)
    lengths = (longest >> k for k in range(_CHUNK_LENGTHS))
    return tuple(sorted(n for n in lengths if n >= _SHORTEST_CHUNK))


def row_counts(most_rows: int, batch_size: int) -> tuple[int, ...]:
    """Return the numbers of rows to measure beside `batch_size`, in increasing order: powers of two."""
    counts = (1 << k for k in range(most_rows.bit_length()))
    return tuple(n for n in counts if n != batch_size)


def measure_times(
    model: str | Path,
    *,
    prompt_tokens: int,
    batch_size: int,
    dtype: torch.dtype,
    threads: int,
    progress: Callable[[str, float], None],
    device: str = CPU,
    most_rows: int = 1,
) -> LayerTimes:
    """Measure prefills of [batch_size, prompt_tokens] and the decode steps after them, through `StageModel`.

    Steps of 1, 2, 4, ... up to `most_rows` rows alternate with those of `batch_size` rows.
    Of a model that does not generate, measure forwards of texts of that shape, or of `batch_size` images.
    """
    layout = find_layout(read_config(model))
    layers = layout.layer_count + 2
    # Rows of a state that the model itself makes are not copied.
    counts = row_counts(most_rows, batch_size) if layout.state in ("cache", "inputs") else ()
    with _torch_threads(threads):
        counts_cpu = threads == 1 and device == CPU
        clock = time.thread_time if counts_cpu else device_clock(device)
        progress("loading the model", 0.05)
        whole = _Stopwatch(StageModel.load(model, 0, layers, dtype=dtype, device=device), layout, clock)
        whole.run(batch_size, prompt_tokens, counts, lambda done: progress("timing the layers", 0.1 + 0.5 * done))
        lengths = chunk_lengths(prompt_tokens) if whole.stage.runs_chunks() else ()
        progress("timing chunks of prompts", 0.6)
        whole_chunks = [whole.run_chunks(batch_size, prompt_tokens, length) for length in lengths]
        del whole.stage
        progress("timing the overhead of a stage", 0.9)
        # Of an encoder and a decoder some of the decoder's, which prompts and tokens run through.
        before = 0 if layout.encoder is None else layout.encoder.middle_layer
        own = _middle_layers(layers, before)
        part = _Stopwatch(StageModel.load(model, own.start, own.stop, dtype=dtype, device=device), layout, clock)
        part.run(batch_size, prompt_tokens, counts, lambda _done: None)
        part_chunks = [part.run_chunks(batch_size, prompt_tokens, length) for length in lengths]
    prefill_s, overhead_prefill_s = _apart(_means(whole.prefills), own, part.prefills, part.prefill_overheads)
    decode_s: tuple[float, ...] = ()
    overhead_decode_s = 0.0
    if whole.decodes:
        steps = _means(whole.decodes)
        decode_s, overhead_decode_s = _apart(steps, own, part.decodes, part.decode_overheads, before)
    chunks = []
    for length, (first_s, last_s, _), alone in zip(lengths, whole_chunks, part_chunks, strict=True):
        first_s, overhead_first_s = _apart(first_s, own, alone[:1], alone[2:])
        last_s, overhead_last_s = _apart(last_s, own, alone[1:2], alone[2:])
        chunks.append((length, first_s, last_s, (overhead_first_s + overhead_last_s) / 2))
    rows = [
        (count, *_apart(_means(whole.rows[count]), own, part.rows[count], part.row_overheads[count], before))
        for count in counts
    ]
    return LayerTimes(prefill_s, decode_s, overhead_prefill_s, overhead_decode_s, tuple(chunks), tuple(rows))


def _middle_layers(layers: int, before: int = 0) -> slice:
    """Return the layers of the stage that the overhead is measured with, behind that `before` and but the head."""
    count = min(_COLD_LAYERS, layers - 2 - before)
    first = max(before + 1, (before + layers - count) // 2)
    return slice(first, first + count)


def _apart(
    whole_s: tuple[float, ...],
    own: slice,
    part: Sequence[tuple[float, ...]],
    overheads: Sequence[float],
    before: int = 0,
) -> tuple[tuple[float, ...], float]:
    """Return the seconds of the model's layers once a forward is under way, and the overhead of a stage.

    `part` and `overheads` are of forwards of a stage of the layers `own`. Beside them there are masks, rotary
    embeddings and the placeholders of other layers. The layers themselves take longer at the start of a forward than in
    the midst of one, since the core was idle: so the overhead has this too, and the model's first layers do not, which
    are those behind the one `before`.
    """
    overhead_s = _mean(overheads)
    cold_s = [at_start - inside for at_start, inside in zip(_means(part), whole_s[own], strict=True)]
    if sum(cold_s) <= 0.0:
        return whole_s, overhead_s
    first = before + 1
    first_s = [max(seconds - cold, seconds / 2) for seconds, cold in zip(whole_s[first:], cold_s, strict=False)]
    return (*whole_s[:first], *first_s, *whole_s[first + len(first_s) :]), overhead_s + sum(cold_s)


def _means(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(map(_mean, zip(*rows, strict=True)))


def _mean(seconds: Sequence[float]) -> float:
    """Return the mean, without what took far longer than the median: something else ran then.

    Medians would also leave out steps that take a little longer now and then, which a run does not.
    """
    most = _OUTLIER * statistics.median(seconds)
    return statistics.fmean(one for one in seconds if one <= most)


def machine_name() -> str:
    """Return the processor model, if known, and the number of cores."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {os.cpu_count()} cores"


def measure_layers(
    model: str | Path, start: int, stop: int, *, prompt_tokens: int, batch_size: int, dtype: torch.dtype, threads: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean seconds of the layers [start, stop), for prompts and for a token each, as `measure_times` does.

    Only these layers are loaded. Of a model that does not generate there are none for tokens.
    """
    layout = find_layout(read_config(model))
    with _torch_threads(threads):
        clock = time.thread_time if threads == 1 else device_clock(CPU)
        part = _Stopwatch(StageModel.load(model, start, stop, dtype=dtype), layout, clock)
        part.run(batch_size, prompt_tokens, (), lambda _done: None)
    return _means(part.prefills), _means(part.decodes) if part.decodes else ()


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Stopwatch:
    """Times the layers of a stage, and the overhead of its forwards, by hooks on the modules."""

    def __init__(self, stage: StageModel, layout: Layout, clock: Callable[[], float]) -> None:
        self.stage = stage
        self.prefills: list[tuple[float, ...]] = []
        self.decodes: list[tuple[float, ...]] = []
        self.prefill_overheads: list[float] = []
        self.decode_overheads: list[float] = []
        self.rows: defaultdict[int, list[tuple[float, ...]]] = defaultdict(list)
        self.row_overheads: defaultdict[int, list[float]] = defaultdict(list)
        self._image_tokens = layout.image_tokens
        self._encoder = layout.encoder
        self._middle_s = 0.0
        self._clock = clock
        self._embeddings_s = 0.0
        self._entered = 0.0
        self._left = 0.0
        self._layers_s: dict[int, float] = {}  # by layer of the plan
        layers = layout.layers_of(stage.model)
        for number in range(stage.start, stage.stop):
            for layer in layers[layout.bounds[number] : layout.bounds[number + 1]]:
                layer.register_forward_pre_hook(self._enter)
                # The stage's own hook ends the forward.
                layer.register_forward_hook(functools.partial(self._leave, number), prepend=True)
        if stage.is_first:
            for name in layout.before:
                module = stage.model.get_submodule(name)
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave_embeddings)
        for name in layout.encoder.middle if layout.encoder is not None and stage.is_first else ():
            module = stage.model.get_submodule(name)
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave_middle)

    def run(
        self, batch_size: int, prompt_tokens: int, row_counts: Sequence[int], progress: Callable[[float], None]
    ) -> None:
        """Time prefills, each followed by decode steps if the model generates; the first one only warms up.

        After some prefills a step of each of the `row_counts` follows too.
        """
        x, inputs = self._start(batch_size, prompt_tokens)
        row_repetitions = _SHORT_ROW_REPETITIONS if prompt_tokens < _SHORT_PROMPT else _ROW_REPETITIONS
        for repetition in range(_PREFILLS + 1):
            cache = self.stage.new_cache() if self.stage.generates else None
            prefill, *decodes = [self._time(work) for work in self._forwards(x, inputs, cache)]
            if x is not None and cache is not None and 0 < repetition <= row_repetitions:
                self._time_rows(x, cache, row_counts)
            progress((repetition + 1) / (_PREFILLS + 1))
            if repetition > 0:
                self.prefills.append(prefill[0])
                self.prefill_overheads.append(prefill[1])
                self.decodes += [layers for layers, _ in decodes]
                self.decode_overheads += [overhead for _, overhead in decodes]

    def run_chunks(
        self, batch_size: int, prompt_tokens: int, length: int
    ) -> tuple[tuple[float, ...], tuple[float, ...], float]:
        """Time the first and the last `length` tokens of a prompt, of which the rest runs between them.

        Returns the mean seconds of each layer for both, and the mean overhead.
        """
        x, _ = self._start(batch_size, prompt_tokens)
        assert x is not None, "a prefill starts with ids or a hidden state"
        first, between, last = torch.split(x, [length, prompt_tokens - 2 * length, length], dim=1)
        timed = []
        for _ in range(_CHUNK_REPETITIONS):
            cache = self.stage.new_cache()
            timed.append(self._time(self._chunk(first, 0, cache)))
            if between.shape[1]:
                self._time(self._chunk(between, length, cache))  # for the pause that follows
            timed.append(self._time(self._chunk(last, prompt_tokens - length, cache)))
        columns = [[layers for layers, _ in timed[k::2]] for k in (0, 1)]
        first_s, last_s = map(_means, columns)
        return first_s, last_s, _mean([overhead for _, overhead in timed])

    def _time_rows(self, x: Tensor, cache: Cache, counts: Sequence[int]) -> None:
        """Time a step of each number of rows, all of which are behind the first row of the prompts `x` [B, S, ...]."""
        for count in counts:
            of_rows = copy.deepcopy(cache)
            of_rows.reorder_cache(torch.zeros(count, dtype=torch.long))
            if isinstance(of_rows, PromptCache) and of_rows.shape is not None:
                of_rows.shape = torch.Size((count, *of_rows.shape[1:]))
            token = x[:1, :1].repeat(count, *(1,) * (x.dim() - 1))
            tokens = x.shape[1] + _DECODE_STEPS
            # The first step gives the cache its room, and its seconds are not kept.
            for step in (1, 2):
                mask = torch.ones(count, tokens + step, dtype=torch.long)
                layers, overhead = self._time(self._step(token, mask, of_rows))
            self.rows[count].append(layers)
            self.row_overheads[count].append(overhead)

    def _step(self, x: Tensor, mask: Tensor, cache: Cache) -> Callable[[], object]:
        if self.stage.encoder_decoder is not None:
            return functools.partial(self.stage.encoder_decoder.forward_step, x, None, cache)
        return functools.partial(self.stage.forward, x, mask, cache)

    def _chunk(self, x: Tensor, before: int, cache: Cache) -> Callable[[], object]:
        """Return the forward of a part of a prompt behind so many tokens, as a stage runs it."""
        mask = torch.ones(len(x), before + x.shape[1], dtype=torch.long)
        return functools.partial(self.stage.forward, x.contiguous(), mask, cache)

    def _forwards(
        self, x: Tensor | None, inputs: dict[str, Tensor], cache: Cache | None
    ) -> Iterator[Callable[[], object]]:
        """Yield a prefill and its decode steps, or the one forward of a model that does not generate."""
        if cache is None:
            yield functools.partial(self.stage.forward_once, x, inputs)
            return
        assert x is not None, "a prefill starts with ids or a hidden state"
        rows, tokens = x.shape[:2]
        if self.stage.encoder_decoder is not None:
            # The decoder starts with one token, as without `decoder_input_ids`.
            own, ids = (None, x[:, :1]) if self.stage.is_first else (x, torch.zeros(rows, 1, dtype=torch.long))
            yield functools.partial(self.stage.encoder_decoder.forward_prompt, own, inputs, ids, cache)
            for _ in range(_DECODE_STEPS):
                yield self._step(x[:, :1], ids, cache)
            return
        for step in range(_DECODE_STEPS + 1):
            mask = torch.ones(rows, tokens + step, dtype=torch.long)
            yield functools.partial(self.stage.forward, x if step == 0 else x[:, :1], mask, cache)

    def _start(self, batch_size: int, prompt_tokens: int) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the arguments of a prefill: random ids or a random hidden state, and random inputs of the model."""
        generator = torch.Generator().manual_seed(0)
        make = example_inputs if self._encoder is None else example_prompt
        inputs = make(self.stage.config, rows=batch_size, tokens=prompt_tokens)
        for name, tensor in inputs.items():
            if tensor.is_floating_point():
                inputs[name] = torch.randn(tensor.shape, generator=generator)
            else:
                inputs[name] = torch.randint(vocabulary_of(self.stage), tensor.shape, generator=generator)
        if self.stage.is_first and self._encoder is not None:
            return torch.randint(vocabulary_of(self.stage), (batch_size, 1), generator=generator), inputs
        if self.stage.is_first:
            return (inputs["input_ids"] if self.stage.generates else None), inputs
        tokens = (self._image_tokens or prompt_tokens) + (self._encoder is not None)
        x = torch.randn(batch_size, tokens, self.stage.hidden_size, generator=generator)
        return x.to(self.stage.model.dtype), inputs

    def _time(self, work: Callable[[], object]) -> tuple[tuple[float, ...], float]:
        self._embeddings_s = self._middle_s = 0.0
        self._layers_s = dict.fromkeys(range(self.stage.start, self.stage.stop), 0.0)
        began_s = time.monotonic()
        start = self._clock()
        work()
        stop = self._clock()
        time.sleep(min(_PAUSE * (time.monotonic() - began_s), _LONGEST_PAUSE_S))
        if self.stage.is_first and self._encoder is not None:
            self._layers_s[self._encoder.middle_layer] += self._middle_s
        if self.stage.is_first:
            self._layers_s[0] += self._embeddings_s
        if self.stage.is_last:
            self._layers_s[self.stage.stop - 1] += stop - self._left
        seconds = list(self._layers_s.values())
        return tuple(seconds), stop - start - sum(seconds)

    def _enter(self, *_: Any) -> None:
        self._entered = self._clock()

    def _leave(self, number: int, *_: Any) -> None:
        self._left = self._clock()
        self._layers_s[number] += self._left - self._entered

    def _leave_embeddings(self, *_: Any) -> None:
        self._embeddings_s += self._clock() - self._entered

    def _leave_middle(self, *_: Any) -> None:
        self._middle_s += self._clock() - self._entered


def vocabulary_of(stage: StageModel) -> int:
    """Return the number of tokens that a stage's model knows, on each of its sides if there are two."""
    whole = getattr(stage.config, "vocab_size", None) or split_config(stage.config).vocab_size
    return min(int(whole), int(split_config(stage.config).vocab_size))
