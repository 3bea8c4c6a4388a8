"""One process of a pipeline: loads its stage and serves it, session after session, until it is not needed."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from orbitsplit._models.source import open_model
from orbitsplit._models.stage import StageModel
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._memory import is_out_of_memory, resident_bytes
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.codec_file import CodecFile
from orbitsplit.runtime._messages.control import Failure, Ready, Setup
from orbitsplit.runtime._messages.transport import ControlStore, PeerLostError

from .stage_server import Serving
from .telemetry import Heart


class Worker:
    """A process that runs a stage: the same one as before where a new session leaves it in place."""

    def __init__(
        self, address: str, number: int, heart: Heart, *, model: str | Path | None, codebook: str | Path | None
    ) -> None:
        self._own_model, self._own_codebook = model, codebook
        self._store = ControlStore.join(address)
        self._number = number
        self._heart = heart
        self._model: StageModel | None = None
        self._loaded: tuple[object, ...] = ()
        self._baseline_bytes = resident_bytes()

    def serve(self, first_session: int) -> None:
        """Serve one session after the other, until told to stop or not part of one."""
        for session in itertools.count(first_session):
            setup = Setup.from_json(self._store.get(control.setup_key(session)))
            if self._number not in setup.workers:
                return
            try:
                self._serve(setup, session)
            except PeerLostError as error:
                self._tell(session, Failure("peer", str(error), "", is_consequence=True))
            except Exception as error:
                traceback.print_exc()
                kind = "memory" if is_out_of_memory(error) else "failed"
                summary = f"{type(error).__name__}: {error}"
                self._tell(session, Failure(kind, summary, traceback.format_exc(), is_consequence=False))
                return
            else:
                return

    def _serve(self, setup: Setup, session: int) -> None:
        heart, plan = self._heart, setup.read_plan()
        if self._own_model is not None:
            setup = replace(setup, model=str(open_model(self._own_model)))
        codecs: CodecFile | None = None
        if setup.codecs is not None and self._own_codebook is not None:
            codecs = CodecFile(plan, self._own_codebook)
            setup = replace(setup, codecs=codecs.path)
        heart.session, heart.sender, heart.receiver = session, None, None
        started_s = time.monotonic()
        heart.phase = "loading its layers"
        torch.set_num_threads(plan.threads)
        rank = setup.workers.index(self._number)
        model = self._load(setup, plan, rank)
        loading_s = time.monotonic() - started_s
        heart.phase = "connecting to the other stages"
        try:
            serving = Serving(self._store.address, setup, plan, session, rank, model, heart)
        finally:
            if codecs is not None:
                codecs.remove()  # they are read by now
        with serving:
            heart.phase = "waiting for work"
            ready = ready_record(model, self._baseline_bytes, loading_s)
            self._store.put(control.ready_key(session, self._number), ready.to_json())
            serving.run()

    def _load(self, setup: Setup, plan: Plan, rank: int) -> StageModel:
        """Return the model of a stage: the one there is, if it is of the same layers."""
        stage = plan.stages[rank]
        wanted = (setup.model, stage.start, stage.stop, plan.dtype)
        if self._model is None or self._loaded != wanted:
            self._model = None
            gc.unfreeze()
            gc.collect()
            self._model = StageModel.load(setup.model, stage.start, stage.stop, dtype=getattr(torch, plan.dtype))
            self._loaded = wanted
        return self._model

    def _tell(self, session: int, failure: Failure) -> None:
        with suppress(RuntimeError):  # the store is gone with the parent
            self._store.put(control.failure_key(session, self._number), failure.to_json())


def ready_record(model: StageModel, baseline_bytes: int, loading_s: float) -> Ready:
    """Return what the parent must know of a loaded stage."""
    generation = model.generation_config
    eos = None if generation is None else generation.eos_token_id
    text = model.config.get_text_config(decoder=True)
    return Ready(
        weight_bytes=model.weight_bytes,
        baseline_bytes=baseline_bytes,
        loading_s=loading_s,
        generates=model.generates,
        eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
        pad_token_id=None if generation is None else generation.pad_token_id,
        vocabulary=getattr(text, "vocab_size", None),
        clock_offset_s=time.time() - time.monotonic(),
        sampling=(None, None, None)
        if generation is None
        else (generation.temperature, generation.top_k, generation.top_p),
    )


def main(
    address: str,
    worker_number: str,
    first_session: str,
    *,
    model: str | Path | None = None,
    codebook: str | Path | None = None,
) -> None:
    """Serve as a worker of the control store at "host:port", then end the process.

    `model` and `codebook` are those of this machine, where the parent's are on another.
    """
    number = int(worker_number)
    heart = Heart(address, number)
    heart.start()
    code = 0
    try:
        Worker(address, number, heart, model=model, codebook=codebook).serve(int(first_session))
    except Exception:  # not of a session: the store is gone, or this is a bug
        code = 1
        traceback.print_exc()
    # Not by sys.exit: threads of Gloo and of the store may be inside C++ and abort when Python is torn down under them.
    sys.stderr.flush()
    os._exit(code)
