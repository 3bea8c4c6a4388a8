"""The process of a worker: it loads a stage and serves it, session after session, until it is not needed any more."""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers.cache_utils import Cache

from orbitsplit._models.encoder_decoder import has_own_loop
from orbitsplit._models.fingerprint import first_other_layer, hash_layer
from orbitsplit._models.generation_rules import rope_change, settings_of
from orbitsplit._models.positions import position_limit
from orbitsplit._models.source import open_model, read_config
from orbitsplit._models.stage import StageModel
from orbitsplit._models.verdicts import check_architecture
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.plan_parts import PlanStage
from orbitsplit.runtime._memory import is_out_of_memory, library_bytes, resident_bytes
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.codec_file import CodecFiles, ReceivedCodecs, TemporaryCodecs, links_of
from orbitsplit.runtime._messages.control import EncoderInput, Failure, Ready, Setup
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._messages.transport import PeerLostError

from .assistant import load_assistant, with_assistant
from .cache_exchange import leave
from .stage_server import StageServer, freeze, use_codec
from .telemetry import HeartbeatThread


class Trials(NamedTuple):
    """What is found out about a stage once it is loaded, by forwards and from its weights; fields as of `Ready`."""

    runs_chunks: bool = False
    runs_packs: bool = False
    cache_bytes_per_token: int = 0
    cache_layers: tuple[tuple[int, int, int | None], ...] = ()
    layer_hashes: tuple[str, ...] = ()


NO_TRIALS = Trials()


class Worker:
    """A worker: runs one stage per session and keeps its layers if the next session needs the same ones."""

    def __init__(
        self,
        address: str,
        number: int,
        heartbeat: HeartbeatThread,
        *,
        model: str | Path | None,
        codebook: str | Path | None,
        weight_models: Mapping[str, str],
        imported_bytes: int = 0,
    ) -> None:
        self._own_model, self._own_codebook, self._own_weight_models = model, codebook, weight_models
        self._store = ControlStore.join(address)
        self._number = number
        self._heartbeat = heartbeat
        self._model: StageModel | None = None
        self._loaded: tuple[object, ...] = ()
        self._assistant: StageModel | None = None
        self._trials = NO_TRIALS
        self._caches: dict[int, Cache] = {}  # of the groups in flight when the last session was handed over
        self._imported_bytes = imported_bytes
        self._take_baseline()

    def serve(self, first_session: int) -> None:
        """Serve one session after the other, until the parent stops one or one does not need this worker.

        What the first session needs is loaded before it starts if the parent has said what that is.
        """
        if self._store.has(control.ahead_key(self._number)) and not self._load_ahead(first_session):
            return
        for session in itertools.count(first_session):
            setup = Setup.from_json(self._store.get(control.setup_key(session)))
            try:
                if self._number in setup.leaving:
                    self._heartbeat.phase = "handing its caches over"
                    leave(self._store.address, setup, session, self._number, self._caches, self._layers)
                if self._number not in setup.workers:
                    return
                self._serve(setup, session)
            except PeerLostError as error:
                self._caches = {}
                self._report_loss(session, error)
            except Exception as error:
                self._report_error(session, error)
                return
            else:
                if not self._store.has(control.hand_over_key(session)):
                    return

    @property
    def _layers(self) -> tuple[int, int]:
        """The transformer layers [start, stop) of the stage that is loaded."""
        return (0, 0) if self._model is None else (self._model.first_layer, self._model.last_layer)

    def _load_ahead(self, session: int) -> bool:
        """Load the stage of a later session, and report that; return False after an error."""
        setup = Setup.from_json(self._store.get(control.ahead_key(self._number)))
        plan, rank = setup.read_plan(), setup.workers.index(self._number)
        started_s = time.monotonic()
        self._heartbeat.phase = "loading its layers ahead"
        try:
            setup = replace(setup, model=self._model_of(setup, plan.stages[rank], plan))
            model, assistant = self._prepare(setup, plan, rank)
        except Exception as error:
            self._report_error(session, error)
            return False
        ready = ready_record(model, self._baseline_bytes(), time.monotonic() - started_s, self._trials)
        if assistant is not None:
            ready = with_assistant(ready, assistant, plan.workload)
        use_codec("raw", torch.zeros(1, 2, model.hidden_size))
        freeze()
        self._store.put(control.loaded_key(self._number), ready.to_json())
        self._heartbeat.phase = "waiting for its session"
        return True

    def _prepare(self, setup: Setup, plan: Plan, rank: int) -> tuple[StageModel, StageModel | None]:
        """Return the model of a stage, tried out, and the assistant beside it; loaded unless they are there."""
        torch.set_num_threads(plan.threads)
        before = self._loaded  # no reference to the old model: it goes before the next one is loaded
        model = self._load(setup, plan, rank)
        assistant = self._load_assistant(setup, plan, rank)
        if self._loaded != before:
            self._trials = Trials(
                model.runs_chunks(),
                model.runs_packs(),
                model.cache_bytes_per_token(),
                model.cache_layers(),
                _own_hashes(model) if setup.is_replicated else (),
            )
        return model, assistant

    def _serve(self, setup: Setup, session: int) -> None:
        heartbeat, plan = self._heartbeat, setup.read_plan()
        rank = setup.workers.index(self._number)
        setup = replace(setup, model=self._model_of(setup, plan.stages[rank], plan))
        codecs = None if setup.codecs is None else self._codecs_of(setup, plan, session, rank)
        if codecs is not None:
            setup = replace(setup, codecs=codecs.path)
        heartbeat.session, heartbeat.sender, heartbeat.receiver = session, None, None
        started_s = time.monotonic()
        heartbeat.phase = "loading its layers"
        layers_before = self._layers
        model, assistant = self._prepare(setup, plan, rank)
        loading_s = time.monotonic() - started_s
        heartbeat.phase = "connecting to the other stages"
        try:
            started_s = time.monotonic()
            serving = StageServer(self._store.address, setup, plan, session, rank, model, assistant, heartbeat)
            connecting_s = time.monotonic() - started_s
        finally:
            if codecs is not None:
                codecs.remove()  # they are read by now
        with serving:
            heartbeat.phase = "waiting for work"
            ready = ready_record(model, self._baseline_bytes(), loading_s, self._trials)
            started_s = time.monotonic()
            moved_bytes, lost, transfers = serving.take_over(self._caches, layers_before)
            self._caches, exchange_s = {}, time.monotonic() - started_s
            ready = replace(
                ready,
                connecting_s=connecting_s,
                moved_bytes=moved_bytes,
                lost_groups=lost,
                exchange_s=exchange_s,
                transfers=transfers,
            )
            if assistant is not None:
                ready = with_assistant(ready, assistant, plan.workload)
            self._store.put(control.ready_key(session, self._number), ready.to_json())
            serving.run()
            self._caches = serving.caches

    def _codecs_of(self, setup: Setup, plan: Plan, session: int, rank: int) -> TemporaryCodecs | None:
        """Return the codecs of the stage's links where they come from another machine or this machine's codebook."""
        links = links_of(rank, len(plan.links))
        if self._own_codebook is not None:
            return CodecFiles(plan, self._own_codebook, links=links)
        if not setup.sends_codecs:
            return None
        return ReceivedCodecs({link: self._store.get(control.codecs_key(session, link)) for link in links})

    def _model_of(self, setup: Setup, stage: PlanStage, plan: Plan) -> str:
        """Return the model that a stage loads, that of its weights or the plan's, or this machine's own copy of it."""
        if stage.weights is not None:
            return str(open_model({**plan.weight_models, **self._own_weight_models}[stage.weights]))
        return setup.model if self._own_model is None else str(open_model(self._own_model))

    def _take_baseline(self) -> None:
        self._start_bytes = resident_bytes()
        self._start_library_bytes = library_bytes()

    def _baseline_bytes(self) -> int:
        """Return what is not the stage's memory: the interpreter and its libraries, as before a stage is loaded.

        A process starts without the pages of libraries that its fork server touched when it imported them, and gets
        them when it touches them itself. They count as the libraries', up to as many as the server had.
        """
        regained = min(library_bytes(), self._imported_bytes) - self._start_library_bytes
        return self._start_bytes + max(0, regained)

    def _load(self, setup: Setup, plan: Plan, rank: int) -> StageModel:
        """Return the model of a stage: the one that is loaded, if it has the same layers."""
        stage = plan.stages[rank]
        wanted = (setup.model, stage.start, stage.stop, plan.dtype, stage.device)
        if self._model is None or self._loaded != wanted:
            if not self._loaded:  # what the architecture imports, and its forward on the meta device, is no stage's
                for path in (setup.model, *([] if rank > 0 or setup.assistant is None else [setup.assistant])):
                    check_architecture(read_config(path))
                self._take_baseline()
            if self._model is not None:
                self._model = None
                _collect()
            self._model = StageModel.load(
                setup.model, stage.start, stage.stop, dtype=getattr(torch, plan.dtype), device=stage.device
            )
            self._loaded = wanted
        if stage.weights is None:
            _check_source(setup, self._model)
        return self._model

    def _load_assistant(self, setup: Setup, plan: Plan, rank: int) -> StageModel | None:
        """Return the assistant, which the first stage has beside its layers; None on others, or if there is none."""
        if setup.assistant is None or rank > 0:
            if self._assistant is not None:
                self._assistant = None
                _collect()
        elif self._assistant is None:
            dtype: torch.dtype = getattr(torch, plan.dtype)
            self._assistant = load_assistant(setup.assistant, dtype=dtype, device=plan.stages[rank].device)
        return self._assistant

    def _report_error(self, session: int, error: Exception) -> None:
        traceback.print_exc()
        kind = "memory" if is_out_of_memory(error) else "failed"
        summary = f"{type(error).__name__}: {error}"
        self._report_failure(session, Failure(kind, summary, traceback.format_exc(), is_consequence=False))

    def _report_loss(self, session: int, error: PeerLostError) -> None:
        kind = "peer" if error.link is None else "link"
        failure = Failure(kind, str(error), "", is_consequence=error.link is None, link=error.link)
        self._report_failure(session, failure)

    def _report_failure(self, session: int, failure: Failure) -> None:
        with suppress(RuntimeError):  # the store is gone with the parent
            self._store.put(control.failure_key(session, self._number), failure.to_json())


def _collect() -> None:
    """Free what is not needed any more; it may be among what `StageServer` has frozen."""
    gc.unfreeze()
    gc.collect()


def _check_source(setup: Setup, model: StageModel) -> None:
    """Raise ValueError if the layers of a stage are not those that the weights of other stages were converted from."""
    if not setup.source_hashes:
        return
    layers = model.transformer_layers
    own = range(model.first_layer, model.last_layer)
    index = first_other_layer({index: layers[index] for index in own}, dict(enumerate(setup.source_hashes)))
    if index is not None:
        raise ValueError(
            f"the weights of other stages were converted from another model than {setup.model}, "
            f"of which layer {index} has other weights"
        )


def _own_hashes(model: StageModel) -> tuple[str, ...]:
    return tuple(map(hash_layer, model.transformer_layers[model.first_layer : model.last_layer]))


def _encoder_input(model: StageModel) -> EncoderInput | None:
    """Return what the encoder of a model reads, None for a model without one."""
    if model.encoder_decoder is None:
        return None
    name = type(model.model).main_input_name
    return EncoderInput(
        name=name,
        model_type=model.config.model_type,
        tokens=model.image_tokens,
        positions=model.encoder_decoder.layout.prompt_positions,
        vocabulary=getattr(model.config.get_text_config(encoder=True), "vocab_size", None),
        has_own_loop=has_own_loop(type(model.model)),
    )


def ready_record(model: StageModel, baseline_bytes: int, loading_s: float, trials: Trials = NO_TRIALS) -> Ready:
    """Return the parent's record of a loaded stage."""
    text = model.config.get_text_config(decoder=True)
    return Ready(
        weight_bytes=model.weight_bytes,
        baseline_bytes=baseline_bytes,
        loading_s=loading_s,
        generates=model.generates,
        vocabulary=getattr(text, "vocab_size", None),
        clock_offset_s=time.time() - time.monotonic(),
        generation_config=settings_of(model.generation_config),
        positions=position_limit(model),
        takes_token_types=model.takes_token_types,
        image_inputs=model.image_inputs,
        rope_change=rope_change(model.config) if model.generates else None,
        encoder=_encoder_input(model),
        **trials._asdict(),
    )


def main(
    address: str,
    worker_number: str,
    first_session: str,
    own_files: str = "{}",
    *,
    model: str | Path | None = None,
    codebook: str | Path | None = None,
    weight_models: Mapping[str, str] | None = None,
    imported_bytes: int = 0,
) -> None:
    """Run as a worker of the control store at "host:port", then end the process.

    `model`, `codebook` and `weight_models` (models by the names of their weights) are paths on this machine, if the
    parent runs on another; `own_files` are the first and the last of them as JSON, from the agent of a host.
    `imported_bytes` is the resident memory of shared libraries in the fork server that this
    process comes from, after their import.
    """
    number, own = int(worker_number), json.loads(own_files)
    heartbeat = HeartbeatThread(address, number)
    heartbeat.start()
    code = 0
    try:
        worker = Worker(
            address,
            number,
            heartbeat,
            model=own.get("model", model),
            codebook=codebook,
            weight_models=own.get("weight_models", weight_models) or {},
            imported_bytes=imported_bytes,
        )
        worker.serve(int(first_session))
    except Exception:  # outside of a session: the store is gone, or this is a bug
        code = 1
        traceback.print_exc()
    # Not sys.exit: threads of Gloo and of the store may be inside C++ and abort while the interpreter is finalised.
    sys.stderr.flush()
    os._exit(code)
