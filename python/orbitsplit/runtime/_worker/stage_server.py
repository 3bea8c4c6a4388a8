"""The server of a stage in one session: its channels, its codecs, its loop."""

from __future__ import annotations

import functools
import gc
import os
import threading
import time
from contextlib import suppress
from itertools import pairwise
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from orbitsplit._codec.calibrated import CalibratedCodec
from orbitsplit._codec.codecs import compress, decompress
from orbitsplit._errors import TransportError
from orbitsplit._io.device_names import CPU
from orbitsplit._models.device import device_peak_bytes
from orbitsplit._models.fingerprint import hash_layers
from orbitsplit._models.stage import StageModel
from orbitsplit._network.link_conditions import LinkConditions
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.trace import Recorder
from orbitsplit.runtime._emulation.link_shaper import LinkShaper, PathShaper
from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._memory import peak_bytes
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.codec_file import links_of, read_codecs
from orbitsplit.runtime._messages.control import Drain, Setup, StageRecord, stage_name
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._messages.environment import SECRET_VARIABLE
from orbitsplit.runtime._messages.framing import Header, channel_key
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._messages.limits import Limits
from orbitsplit.runtime._messages.packs import Part
from orbitsplit.runtime._messages.record import Traffic
from orbitsplit.runtime._messages.transport import Receiver, Sender, Transport
from orbitsplit.runtime._schedule.first_stage import FirstStage
from orbitsplit.runtime._schedule.follower import run_follower
from orbitsplit.runtime._schedule.protocol import Kind, Loopback, Message, Outlet

from .arrivals import record_arrival
from .assistant import Assistant
from .cache_exchange import CacheExchange, Transfer, transport_of
from .channels import ActivationInlet, ActivationOutlet, TokenInlet, TokenOutlet, codebook_of
from .computation import Computation
from .telemetry import HeartbeatThread, Reporter, Requests


class StageServer:
    """Serves one stage of a plan, connected to the others; the `with` block ends with the connections."""

    def __init__(
        self,
        address: str,
        setup: Setup,
        plan: Plan,
        session: int,
        rank: int,
        model: StageModel,
        assistant: StageModel | None,
        heartbeat: HeartbeatThread,
    ) -> None:
        self._address = address
        self._setup = setup
        self._plan = plan
        self._session = session
        self._rank = rank
        self._model = model
        self._assistant = assistant
        self._heartbeat = heartbeat
        self._last = len(plan.stages) - 1
        self._dtype: torch.dtype = getattr(torch, plan.dtype)
        self._codecs = self._load_codecs()
        self._warm_up()
        stage = plan.stages[rank]
        slowdown = stage.slowdown if setup.emulates else 1.0
        counts_cpu = plan.threads == 1 and stage.device == CPU
        clock = time.thread_time if counts_cpu else time.monotonic
        self._pace = Pace(Recorder(), slowdown=slowdown, clock=clock, planned_rows=plan.workload.batch_size)
        self._reporter = Reporter(address, session)
        self._transport: Transport | None = None
        self._moved: dict[int, Cache] = {}
        self._stage: Computation | None = None
        if self._last > 0 or setup.leaving:
            self._transport = transport_of(address, setup, session, setup.workers[rank])
        self._origin_s = setup.origin_s or time.monotonic()

    def __enter__(self) -> StageServer:
        self._reporter.start()
        self._heartbeat.pace = self._pace
        if self._transport is not None:
            watch = threading.Thread(target=self._watch, args=(self._transport,), name="watch", daemon=True)
            watch.start()
        if self._transport is not None and self._last > 0:
            try:
                self._heartbeat.receiver = self._open_receiver(self._transport)
                self._heartbeat.sender = self._open_sender(self._transport)
            except BaseException:  # a neighbour was lost just now; the next session joins a new group
                self._transport.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._heartbeat.sender = self._heartbeat.receiver = self._heartbeat.pace = None
        if self._transport is not None:
            self._transport.close()

    @property
    def caches(self) -> dict[int, Cache]:
        """The caches of the groups in flight, which another session may go on with."""
        return {} if self._stage is None else self._stage.caches()

    def take_over(
        self, caches: dict[int, Cache], layers: tuple[int, int]
    ) -> tuple[int, tuple[int, ...], tuple[Transfer, ...]]:
        """Get the caches of moved groups from where they are; those of this process, of the `layers` [start, stop), go.

        Returns how many bytes came from other nodes, the groups of which not all caches came whole, and what links
        carried.
        """
        if not self._setup.moved_groups:
            return 0, (), ()
        number = self._setup.workers[self._rank]
        exchange = CacheExchange(self._transport, self._setup, number, caches, layers)
        self._moved, moved_bytes, lost = exchange.run(self._model)
        return moved_bytes, lost, tuple(exchange.transfers)

    def run(self) -> None:
        """Serve until STOP. Raises PeerLostError if a neighbour is lost, or the session is interrupted."""
        sender, receiver = self._heartbeat.sender, self._heartbeat.receiver
        inbox: SimpleQueue[Any] = SimpleQueue()
        outlet: Outlet = Loopback(inbox.put)
        if sender is not None:
            outlet = TokenOutlet(sender) if self._rank == self._last else self._activation_outlet(sender)
        name, record = stage_name(self._plan, self._rank), functools.partial(self._record, outlet)
        self._stage = stage = Computation(
            name,
            self._model,
            self._pace,
            self._reporter.outputs,
            record,
            planned_rows=self._plan.workload.batch_size,
            planned_tokens=1 + (self._plan.draft_tokens or 0),
        )
        stage.take_over(self._moved)
        self._moved = {}
        if self._rank > 0:
            assert receiver is not None, "only a chain of one stage has no links"
            run_follower(stage, self._activation_inlet(receiver), outlet)
        else:
            Requests(self._address, self._session, inbox).start()
            if receiver is not None:
                inlet = TokenInlet(receiver, self._link_name(self._last, 0))
                threading.Thread(target=_collect, args=(inlet, inbox), name="tokens", daemon=True).start()
            assistant = Assistant(self._assistant, self._pace)
            first = FirstStage(stage, outlet, self._reporter, self._setup.limits, assistant.drafts)
            self._run_first(first, inbox)
            outlet.notify(Kind.STOP)
        if sender is not None:
            sender.drain()
        self._reporter.flush()

    def _run_first(self, first: FirstStage, inbox: SimpleQueue[Any]) -> None:
        """Feed the first stage with requests of the parent and messages of the last stage."""
        while True:
            # Between two pieces of work, what has arrived meanwhile and no more: neither waits for ever.
            for _ in range(inbox.qsize() if first.has_work else max(1, inbox.qsize())):
                asked_s = time.monotonic()
                event = inbox.get()
                if event is None:
                    return
                if isinstance(event, Message):
                    first.returned(event)
                elif isinstance(event, Arrival):
                    parts = event.message.parts or (Part(event.header.group, event.header.step, 1),)
                    record_arrival(self._pace, event.header, asked_s, event.got_s, parts)
                    first.returned(event.message)
                elif isinstance(event, int):
                    first.cancel(event)
                elif isinstance(event, Limits):
                    first.limits = event
                elif isinstance(event, Drain):
                    first.drain()
                elif isinstance(event, BaseException):
                    raise event
                else:
                    first.begin(*event)
            first.advance()

    def _record(self, outlet: Outlet, group: Group) -> None:
        """Publish the measurements of a group that has ended."""
        traffic = outlet.take_traffic(group.id) if isinstance(outlet, ActivationOutlet) else Traffic()
        events, cpu_s = self._pace.recorder.take(group.id)
        if group.is_recorded:
            used_bytes = peak_bytes() + device_peak_bytes(self._plan.stages[self._rank].device)
            record = StageRecord(events, cpu_s, traffic, used_bytes)
            key = control.record_key(self._session, group.id, self._setup.workers[self._rank])
            self._reporter.put(key, record.to_json())

    def _watch(self, transport: Transport) -> None:
        """Interrupt the session when the parent requests it."""
        with suppress(RuntimeError):  # the store is gone with the parent
            ControlStore.join(self._address).get(control.interrupt_key(self._session))
            transport.interrupt()

    def _open_receiver(self, transport: Transport) -> Receiver:
        before = (self._rank or self._last + 1) - 1
        return Receiver(transport, self._link_name(before, self._rank), before, key=self._key(before, self._rank))

    def _open_sender(self, transport: Transport) -> Sender:
        after = (self._rank + 1) % (self._last + 1)
        name, key = self._link_name(self._rank, after), self._key(self._rank, after)
        planned = self._planned_shaper()
        if not self._setup.emulates:
            return Sender(transport, name, after, shaper=None, planned=planned, key=key)
        shaper = self._conditions_shaper(planned)
        if shaper is None:
            return Sender(transport, name, after, shaper=planned, key=key)
        return Sender(transport, name, after, shaper=shaper, planned=planned, key=key)

    def _planned_shaper(self) -> LinkShaper:
        if self._rank == self._last:
            return LinkShaper(None, self._plan.return_latency_s)
        link = self._plan.links[self._rank]
        return LinkShaper(link.bytes_per_s, link.latency_s)

    def _conditions_shaper(self, planned: LinkShaper) -> LinkShaper | PathShaper | None:
        """Return what emulates the link to the next stage, or those that a token returns over; None: as planned."""
        if self._setup.conditions is None:
            return None
        if self._rank < self._last:
            ends = [(self._plan.stages[self._rank].node, self._plan.stages[self._rank + 1].node)]
            latencies_s = [planned.latency_s]
        else:
            ends = list(pairwise(self._plan.return_way))
            latencies_s = list(self._plan.return_latencies_s) or [planned.latency_s]
        known = LinkConditions.from_dict(self._setup.conditions)
        found = [known.of(*link) for link in ends]
        if not any(found):
            return None
        links = [
            LinkShaper(planned.bytes_per_s, latency_s, conditions=conditions, origin_s=self._origin_s)
            for latency_s, conditions in zip(latencies_s, found, strict=True)
        ]
        return links[0] if len(links) == 1 else PathShaper(links)

    def _activation_outlet(self, sender: Sender) -> ActivationOutlet:
        half_duplex = self._plan.stages[self._rank].half_duplex
        return ActivationOutlet(sender, self._pace, codec=self._codecs[self._rank], half_duplex=half_duplex)

    def _activation_inlet(self, receiver: Receiver) -> ActivationInlet:
        workload = self._plan.workload
        return ActivationInlet(
            receiver,
            self._pace,
            hidden_size=self._model.hidden_size,
            dtype=self._dtype,
            link=self._link_name(self._rank - 1, self._rank),
            planned_tokens=workload.batch_size * (workload.prompt_tokens + workload.new_tokens),
            codebook=codebook_of(self._codecs[self._rank - 1]),
            takes_tokens=self._model.encoder_decoder is not None and self._model.encoder_decoder.takes_tokens,
        )

    def _key(self, source: int, destination: int) -> bytes | None:
        secret = os.environ.get(SECRET_VARIABLE)
        return None if not secret else channel_key(secret.encode(), self._setup.nonce, source, destination)

    def _link_name(self, source: int, destination: int) -> str:
        stages = self._plan.stages
        return f'link from node "{stages[source].node}" to node "{stages[destination].node}"'

    def _load_codecs(self) -> dict[int, CalibratedCodec | str]:
        """Return the codecs of the links into and out of the stage.

        Raises ValueError if the codebook was calibrated for other weights than those of the stage.
        """
        links = links_of(self._rank, len(self._plan.links))
        found, calibrated = read_codecs(self._setup.codecs, self._plan.stages, links)
        if calibrated is not None:
            layers = self._model.transformer_layers
            own = range(self._model.first_layer, self._model.last_layer)
            calibrated.check_layers(self._setup.model, hash_layers({index: layers[index] for index in own}))
        return found

    def _warm_up(self) -> None:
        # Loading has run the model once already.
        x = torch.zeros(1, 2, self._model.hidden_size, dtype=self._dtype)
        for codec in self._codecs.values():
            use_codec(codec, x)
        freeze()


def use_codec(codec: CalibratedCodec | str, x: Tensor) -> None:
    """Encode and decode a tensor: the first use of a codec loads the core, or compiles it (Numba)."""
    decompress(compress(x, codec=codec), codebook_of(codec), framework="torch")


def freeze() -> None:
    """Exempt what is loaded from collections: one during the work would traverse it, for tens of milliseconds."""
    gc.collect()
    gc.freeze()


class Arrival(NamedTuple):
    """A message of the last stage, with its header and its time of arrival on the monotonic clock."""

    message: Message
    header: Header
    got_s: float


def _collect(inlet: TokenInlet, inbox: SimpleQueue[Any]) -> None:
    """Put messages of the last stage into the inbox of the first, and finally the error that ends the session."""
    try:
        while True:
            inbox.put(Arrival(*inlet.receive()))
    except TransportError as error:
        inbox.put(error)
