"""The start of a session: its workers get what they need for their stages, and report when they are ready."""

from __future__ import annotations

from collections.abc import Callable

from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.codec_file import CodecFiles
from orbitsplit.runtime._messages.control import Ready
from orbitsplit.runtime._messages.control_store import ControlStore

from .hand_over import HandOver
from .session import Session, Settings, check_memory
from .supervisor import Workers


class SessionStart:
    """Starts one session after the other in the control store at an address.

    `on_poll` is called with the number of workers that are ready, and that of all, while others are waited for.
    """

    def __init__(
        self, settings: Settings, store_address: str, workers: Workers, on_poll: Callable[[int, int], None]
    ) -> None:
        self._settings = settings
        self._store_address = store_address
        self._workers = workers
        self._on_poll = on_poll
        self._sent: list[str] = []  # keys of the codecs of links, where they are sent

    def run(
        self, number: int, plan: Plan, hand_over: HandOver, codecs: CodecFiles, *, origin_s: float | None
    ) -> Session:
        """Assign the stages and wait until they are ready; return the session.

        Raises TransportError for a worker that is lost or fails, ValueError if a stage has not enough memory.
        """
        workers = self._workers.assign(plan, number)
        setup = self._settings.setup(plan, workers, codecs=codecs.path, origin_s=origin_s)
        setup = hand_over.in_setup(setup, plan)
        store = ControlStore.join(self._store_address)
        if setup.sends_codecs and codecs.path is not None:
            for link in range(len(plan.links)):
                self._sent.append(control.codecs_key(number, link))
                store.put(self._sent[-1], codecs.read(link))
        store.put(control.setup_key(number), setup.to_json())
        keys = [control.ready_key(number, worker) for worker in workers]

        def report() -> None:
            self._on_poll(sum(map(store.has, keys)), len(keys))

        limit_s = self._settings.timeouts.start_s
        values = self._workers.wait_for(plan, number, keys, limit_s=limit_s, on_poll=report, doing="starting")
        report()
        ready = tuple(Ready.from_json(value) for value in values)
        self.remove_codecs()
        check_memory(plan, ready)
        return Session(number, plan, workers, ready)

    def remove_codecs(self) -> None:
        """Remove the codecs of links from the store: all workers have them, or have left the session.

        Not before: one that looks for its codecs later would wait for them for ever.
        """
        if not self._sent:
            return
        store = ControlStore.join(self._store_address)
        while self._sent:
            store.remove(self._sent.pop())
