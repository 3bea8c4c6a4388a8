"""Run a plan on this machine: one process per stage, and tokens like transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from orbitsplit._codebook import Codebook
from orbitsplit._errors import TransportError
from orbitsplit._model import open_model, read_config
from orbitsplit._plan import Plan

from . import _control as control
from ._codec_file import CodecFile
from ._control import Ready, Setup, StageRecord
from ._prompts import check_token, check_tokens, padding_mask
from ._run import Run, measure
from ._schedule import Job
from ._supervise import Workers
from ._transport import ControlStore

Progress = Callable[[str, float], None]


class Pipeline:
    """The processes of a plan: started on construction, ended by `close` or at the end of a `with` block.

    `model` is a directory, a hub id or a GGUF file; the plan's model by default. Each process loads the weights of
    its own stage only (and compares them with the `codebook`, which a plan with levels needs: itself or its file), in
    `dtype` (float32, bfloat16 or float16), and computes with `threads` threads; both are the
    plan's by default, and `plan` is the plan with what is in force. Links have
    the rates and latencies of the plan and nodes its slow-downs. `progress` is called with a phase and a fraction.
    Processes have `start_timeout_s` seconds to get ready; later one that gives no sign of life for
    `heartbeat_timeout_s` seconds ends the pipeline. `last_run` holds the measurements of the last `generate`.

    A pipeline whose node or link failed ends all its processes and raises TransportError on further use.

    Example:
        >>> with Pipeline(plan, "path-or-hub-id") as pipe:                     # doctest: +SKIP
        ...     tokens = pipe.generate(input_ids, attention_mask=mask, max_new_tokens=64)

    Raises:
        ValueError: The plan is for another number of layers, no model is given, the codebook is not the plan's, or the
            weights of a stage exceed the memory of its node.
        TransportError: A process failed to get ready; the message names its node.
    """

    def __init__(
        self,
        plan: Plan,
        model: str | Path | None = None,
        *,
        codebook: Codebook | str | Path | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        start_timeout_s: float = 600.0,
        heartbeat_timeout_s: float = 8.0,
        progress: Progress | None = None,
    ) -> None:
        model = plan.model if model is None else model
        if model is None:
            raise ValueError("the plan names no model: pass one to Pipeline")
        plan = replace(plan, dtype=dtype or plan.dtype, threads=plan.threads if threads is None else threads)
        self.plan = plan
        self.last_run: Run | None = None
        self._progress = progress or (lambda phase, fraction: None)
        self._jobs = 0
        self._unusable: str | None = None
        path = open_model(model, progress=progress)
        _check_layers(plan, path)
        self._codecs = CodecFile(plan, codebook)
        self._store = ControlStore.host()
        self._workers = Workers(plan, self._store, heartbeat_timeout_s=heartbeat_timeout_s)
        setup = Setup(plan.to_dict(), str(path), self._codecs.path, start_timeout_s)
        try:
            self._store.put(control.SETUP, setup.to_json())
            self._workers.start()
            self._ready = self._wait_until_ready(start_timeout_s)
            self._check_memory()
        except BaseException as error:
            self._fail(error)
            raise

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the process id of each stage."""
        return self._workers.pids

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        timeout_s: float | None = None,
    ) -> Tensor:
        """Generate greedily and return prompts and new tokens [B, S + new], as transformers' generate does.

        `input_ids` [B, S] are int64, shorter prompts padded on the left and masked by `attention_mask` [B, S]; without
        a mask, padding is told from the pad token, unless that ends a sequence too. Stops at `max_new_tokens` or when
        every row has ended; ended rows are filled with the pad token. The tokens default to those of the model's
        generation config; an empty sequence for `eos_token_id` ends no row early. The batch runs in as many groups as
        the plan has micro-batches (at most B). Other settings of the generation config (penalties, forced tokens) are
        not applied.

        Raises:
            ValueError: Shapes, types, counts, tokens or padding are wrong. The pipeline can be used again.
            TransportError: A node or a link failed, or `timeout_s` seconds passed. The pipeline cannot be used again.
        """
        if self._unusable is not None:
            raise TransportError(f"the pipeline cannot be used: {self._unusable}")
        job, mask = self._describe(input_ids, attention_mask, max_new_tokens, eos_token_id, pad_token_id)
        try:
            return self._run(job, input_ids, mask, timeout_s)
        except BaseException as error:
            self._fail(error)
            raise

    def close(self) -> None:
        """End all processes. Closing twice is fine."""
        if self._unusable is None:
            self._unusable = "it is closed"
            self._store.put(control.job_key(self._jobs), control.STOP)
            self._workers.end(grace_s=5.0)
            self._codecs.remove()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait_until_ready(self, limit_s: float) -> list[Ready]:
        stages = len(self.plan.stages)
        keys = [control.ready_key(rank) for rank in range(stages)]

        def report() -> None:
            self._progress(f"starting {stages} processes", sum(map(self._store.has, keys)) / stages)

        values = self._workers.wait_for(keys, limit_s=limit_s, on_poll=report, doing="starting")
        report()
        return [Ready.from_json(value) for value in values]

    def _check_memory(self) -> None:
        for rank, (stage, loaded) in enumerate(zip(self.plan.stages, self._ready, strict=True)):
            if stage.memory_bytes is not None and loaded.weight_bytes > stage.memory_bytes:
                raise ValueError(
                    f"{self._workers.name(rank)} needs {loaded.weight_bytes:,} bytes for its weights in "
                    f"{self.plan.dtype}, its limit is {stage.memory_bytes:,}"
                )

    def _run(self, job: Job, input_ids: Tensor, mask: Tensor, timeout_s: float | None) -> Tensor:
        self._jobs += 1
        part = [control.job_part_key(job.id, name) for name in ("tokens", "mask", "result")]
        records = [control.job_part_key(job.id, str(rank)) for rank in range(len(self.plan.stages))]
        self._store.put(part[0], input_ids.to("cpu", torch.int64).numpy().tobytes())
        self._store.put(part[1], mask.to("cpu", torch.uint8).numpy().tobytes())
        self._store.put(control.job_key(job.id), job.to_json())

        def report() -> None:
            self._progress("generating", min(1.0, self._workers.new_tokens() / job.max_new_tokens))

        values = self._workers.wait_for(records, limit_s=timeout_s, on_poll=report, doing="generating")
        result = torch.frombuffer(bytearray(self._store.get(part[2])), dtype=torch.int64).reshape(job.rows, -1)
        for key in (control.job_key(job.id), *part, *records):
            self._store.remove(key)
        stage_records = [StageRecord.from_json(value) for value in values]
        self.last_run = measure(self.plan, job, result.shape[1], self._ready, stage_records)
        self._progress("generating", 1.0)
        return result

    def _describe(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        max_new_tokens: int,
        eos_token_id: int | Sequence[int] | None,
        pad_token_id: int | None,
    ) -> tuple[Job, Tensor]:
        model = self._ready[0]
        check_tokens(input_ids, vocabulary=model.vocabulary)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, it must be at least 1")
        if eos_token_id is None:
            eos_token_id = model.eos_token_ids
        eos = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
        pad = model.pad_token_id if pad_token_id is None else pad_token_id
        mask = padding_mask(input_ids, attention_mask, pad_token_id=pad, eos_token_ids=eos)
        if pad is None:
            pad = eos[0] if eos else 0
        # Ended rows of a group go on with it through the model.
        check_token("pad_token_id is", pad, vocabulary=model.vocabulary)
        rows, tokens = input_ids.shape
        groups = min(self.plan.workload.micro_batches, rows)
        return Job(self._jobs, rows, tokens, max_new_tokens, groups, eos, pad), mask

    def _fail(self, error: BaseException) -> None:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        self._unusable = first_line
        self._workers.end()
        self._codecs.remove()


def _check_layers(plan: Plan, model: str | Path) -> None:
    layers = read_config(model).get_text_config(decoder=True).num_hidden_layers
    if plan.layers != layers + 2:
        raise ValueError(
            f"the plan has {plan.layers} layers, {model} has {layers + 2} "
            f"(embeddings, {layers} transformer layers, head)"
        )
