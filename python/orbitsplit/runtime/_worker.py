"""One process of a pipeline: loads its stage, then serves jobs until it is told to stop."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
import traceback
from contextlib import suppress

import torch
from torch import Tensor

from orbitsplit._calibrated import CalibratedCodec
from orbitsplit._compress import compress, decompress
from orbitsplit._layers import find_layers
from orbitsplit._model_hash import hash_layers
from orbitsplit._plan import Plan
from orbitsplit._stage import StageModel
from orbitsplit._trace import Recorder

from . import _control as control
from ._channels import (
    ActivationInlet,
    ActivationOutlet,
    TokenInlet,
    TokenOutlet,
    activation_capacity,
    codebook_of,
    token_capacity,
)
from ._codec_file import read_codecs
from ._control import Failure, Ready, Setup, SignOfLife, StageRecord
from ._emulation import LinkShaper, Pace
from ._memory import peak_bytes, resident_bytes
from ._record import Traffic
from ._schedule import Inlet, Job, Loopback, Outlet, Sequences, drive, follow
from ._transport import ControlStore, PeerLostError, Receiver, Sender, Transport, channel_tags

_SIGN_OF_LIFE_S = 1.0


class Heart(threading.Thread):
    """Writes a sign of life to the store every second, from a thread and a connection of its own."""

    def __init__(self, port: int, rank: int) -> None:
        super().__init__(name="heart", daemon=True)
        self.phase = "starting"
        self.new_tokens = 0
        self._port = port
        self._rank = rank

    def run(self) -> None:
        """Beat as long as the process lives."""
        store = ControlStore.join(self._port)
        for count in itertools.count():
            sign = SignOfLife(count, self.phase, self.new_tokens)
            store.put(control.sign_of_life_key(self._rank), sign.to_json())
            time.sleep(_SIGN_OF_LIFE_S)


class Computation:
    """The work of a stage for one job: its forward at the node's pace, with one KV cache per group."""

    def __init__(self, model: StageModel, pace: Pace, heart: Heart, *, job: Job, attention_mask: Tensor) -> None:
        self._model = model
        self._pace = pace
        self._heart = heart
        self._job = job
        new = torch.ones(job.rows, job.max_new_tokens, dtype=torch.int64)
        self._mask = torch.cat([attention_mask, new], dim=1)
        self._caches = {group: model.new_cache() for group in range(job.groups)}

    def forward(self, group: int, step: int, x: Tensor) -> Tensor:
        """Return the activation [b, S, H] that leaves the stage, or the new tokens [b] on the last stage."""
        mask = self._mask[self._job.rows_of(group), : self._job.prompt_tokens + step]
        self._heart.new_tokens = step

        def work() -> Tensor:
            output = self._model.forward(x, mask, self._caches[group])
            return output.argmax(dim=-1) if self._model.is_last else output

        return self._pace.run("compute", group, step, work)

    def drop(self, group: int) -> None:
        """Forget the group's KV cache."""
        del self._caches[group]


class Worker:
    """One stage of a plan in this process."""

    def __init__(self, store: ControlStore, rank: int, heart: Heart) -> None:
        self._store = store
        self._rank = rank
        self._heart = heart
        self._setup = Setup.from_json(store.get(control.SETUP))
        self._plan: Plan = self._setup.read_plan()
        self._stage = self._plan.stages[rank]
        torch.set_num_threads(self._plan.threads)
        baseline_bytes = resident_bytes()
        heart.phase = "loading its layers"
        self._model = StageModel.load(
            self._setup.model, self._stage.start, self._stage.stop, dtype=getattr(torch, self._plan.dtype)
        )
        self._codecs = self._load_codecs()
        self._warm_up()
        heart.phase = "connecting to the other stages"
        self._transport = self._join(store.port)
        heart.phase = "waiting for work"
        store.put(control.ready_key(rank), self._ready(baseline_bytes).to_json())

    def serve(self) -> None:
        """Do one job after the other until told to stop."""
        for number in itertools.count():
            data = self._store.get(control.job_key(number))
            if data == control.STOP:
                break
            self._heart.phase = "generating"
            self._run(Job.from_json(data))
            self._heart.phase = "waiting for work"
        if self._transport is not None:
            self._transport.close()

    def _run(self, job: Job) -> None:
        recorder = Recorder()
        pace = Pace(recorder, slowdown=self._stage.slowdown, threads=self._plan.threads)
        mask = _to_tensor(self._store.get(control.job_part_key(job.id, "mask")), torch.uint8, job).to(torch.int64)
        stage = Computation(self._model, pace, self._heart, job=job, attention_mask=mask)
        inlet, outlet, senders = self._open(job, pace)
        if self._rank == 0:
            tokens = _to_tensor(self._store.get(control.job_part_key(job.id, "tokens")), torch.int64, job)
            sequences = Sequences(job, tokens)
            drive(job, sequences, stage, inlet, outlet)
            self._store.put(control.job_part_key(job.id, "result"), sequences.result().numpy().tobytes())
        else:
            follow(job, stage, inlet, outlet)
        for sender in senders:
            sender.drain()
        traffic = outlet.traffic if isinstance(outlet, ActivationOutlet) else Traffic()
        record = StageRecord(tuple(recorder.events), pace.cpu_s, traffic, peak_bytes())
        self._store.put(control.job_part_key(job.id, str(self._rank)), record.to_json())

    def _open(self, job: Job, pace: Pace) -> tuple[Inlet, Outlet, list[Sender]]:
        """Open the stage's channels for a job: from the stage before and to the next, the last before the first."""
        if self._transport is None:
            loopback = Loopback()
            return loopback, loopback, []
        outlet, sender = self._open_outlet(job, pace)
        return self._open_inlet(job, pace), outlet, [sender]

    def _open_inlet(self, job: Job, pace: Pace) -> Inlet:
        activations, tokens = channel_tags(job.id)
        before = (self._rank or len(self._plan.stages)) - 1
        name = self._link_name(before, self._rank)
        if self._rank == 0:
            receiver = Receiver(name, before, tag=tokens, capacity=token_capacity(job))
            return TokenInlet(receiver, pace, job=job, link=name)
        receiver = Receiver(name, before, tag=activations, capacity=self._capacity(job, before))
        hidden_size, dtype = self._model.hidden_size, getattr(torch, self._plan.dtype)
        return ActivationInlet(
            receiver,
            pace,
            job=job,
            hidden_size=hidden_size,
            dtype=dtype,
            link=name,
            codebook=codebook_of(self._codec(before)),
        )

    def _open_outlet(self, job: Job, pace: Pace) -> tuple[Outlet, Sender]:
        activations, tokens = channel_tags(job.id)
        after = (self._rank + 1) % len(self._plan.stages)
        name = self._link_name(self._rank, after)
        if after == 0:
            shaper = LinkShaper(latency_s=self._plan.return_latency_s)
            sender = Sender(name, after, tag=tokens, capacity=token_capacity(job), shaper=shaper)
            return TokenOutlet(sender, job=job), sender
        link = self._plan.links[self._rank]
        shaper = LinkShaper(link.bytes_per_s, link.latency_s)
        sender = Sender(name, after, tag=activations, capacity=self._capacity(job, self._rank), shaper=shaper)
        codec, half_duplex = self._codec(self._rank), self._stage.half_duplex
        return ActivationOutlet(sender, pace, job=job, codec=codec, half_duplex=half_duplex), sender

    def _capacity(self, job: Job, link: int) -> int:
        return activation_capacity(job, self._model.hidden_size, self._plan.dtype, self._codec(link))

    def _codec(self, link: int) -> CalibratedCodec | str:
        return self._codecs[link]

    def _load_codecs(self) -> dict[int, CalibratedCodec | str]:
        """Return the codecs of the links before and behind the stage.

        Raises ValueError if the codebook was calibrated for other weights than the stage has.
        """
        links = [link for link in (self._rank - 1, self._rank) if 0 <= link < len(self._plan.links)]
        found, calibrated = read_codecs(self._setup.codecs, self._plan.stages, links)
        if calibrated is not None:
            _, layers = find_layers(self._model.model)
            own = range(max(0, self._stage.start - 1), min(len(layers), self._stage.stop - 1))
            calibrated.check_layers(self._setup.model, hash_layers({index: layers[index] for index in own}))
        return found

    def _link_name(self, source: int, destination: int) -> str:
        stages = self._plan.stages
        return f'link from node "{stages[source].node}" to node "{stages[destination].node}"'

    def _join(self, port: int) -> Transport | None:
        stages = len(self._plan.stages)
        if stages == 1:
            return None
        return Transport(port, rank=self._rank, stages=stages, timeout_s=self._setup.start_timeout_s)

    def _warm_up(self) -> None:
        # The first use of a codec may compile it (Numba); loading has run the model once already.
        x = torch.zeros(1, 2, self._model.hidden_size, dtype=getattr(torch, self._plan.dtype))
        for codec in self._codecs.values():
            decompress(compress(x, codec=codec), codebook_of(codec), framework="torch")
        # What is loaded stays: a collection amid the work would look through all of it, for tens of milliseconds.
        gc.collect()
        gc.freeze()

    def _ready(self, baseline_bytes: int) -> Ready:
        generation = self._model.generation_config
        eos = generation.eos_token_id
        return Ready(
            weight_bytes=self._model.weight_bytes,
            baseline_bytes=baseline_bytes,
            eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
            pad_token_id=generation.pad_token_id,
            vocabulary=self._model.config.get_text_config(decoder=True).vocab_size,
        )


def _to_tensor(data: bytes, dtype: torch.dtype, job: Job) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(job.rows, job.prompt_tokens)


def main(port_number: str, stage_index: str) -> None:
    """Serve a stage over the control store at a port of this host; report a failure to the parent."""
    port, rank = int(port_number), int(stage_index)
    store = ControlStore.join(port)
    heart = Heart(port, rank)
    heart.start()
    code = 0
    try:
        Worker(store, rank, heart).serve()
    except Exception as error:
        code = 1
        traceback.print_exc()
        failure = Failure(f"{type(error).__name__}: {error}", traceback.format_exc(), isinstance(error, PeerLostError))
        with suppress(RuntimeError):  # the store is gone with the parent
            store.put(control.failure_key(rank), failure.to_json())
    # Not by sys.exit: threads of Gloo and of the store may be inside C++ and abort when Python is torn down under them.
    sys.stderr.flush()
    os._exit(code)
