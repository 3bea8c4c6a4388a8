"""Every stage but the first: it processes what arrives."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from orbitsplit._errors import TransportError
from orbitsplit.runtime._messages.packs import OpenPacks

from .protocol import Forward, Inlet, Kind, Message, Outlet, error_of


class Follower:
    """Any other stage: forwards what arrives, and what it has forwarded already, it sends again."""

    def __init__(self, stage: Forward, outlet: Outlet) -> None:
        self._stage = stage
        self._outlet = outlet
        self._steps: dict[int, int] = {}  # of each group the last one that arrived whole
        self._errors: dict[int, str] = {}  # of each group that failed here
        self._open_packs = OpenPacks(outlet.forget)

    def take(self, message: Message) -> bool:
        """Take the next message; return whether there will be more."""
        kind, group = message.kind, message.group
        if kind in (Kind.BEGIN, Kind.STEP):
            self._take_step(message)
            return True
        if kind is Kind.PACK:
            self._take_pack(message)
            return True
        if kind in (Kind.END, Kind.KEEP):
            if kind is Kind.KEEP:
                self._stage.keep(group, message.step)
            else:
                self._stage.drop(group)
            self._open_packs.leave(group)
            self._steps.pop(group, None)
            self._errors.pop(group, None)
        elif kind is Kind.FORGET:
            self._stage.forget(group)
        self._outlet.notify(kind, group, message.reason, message.step)
        return kind is not Kind.STOP

    def _take_step(self, message: Message) -> None:
        group, step = message.group, message.step
        last = self._steps.get(group)
        if last is not None and step <= last:
            if group in self._errors:
                self._outlet.notify(Kind.FAILED, group, self._errors[group])
            else:
                self._outlet.repeat(group, step)
        elif group in self._errors or not _is_next(message, last):
            return  # the group has failed, or a step before this one is missing, which is on its way again
        elif message.x is None:
            self._outlet.notify(Kind.CORRUPTED, group)
        else:
            self._steps[group] = step
            self._open_packs.leave(group)
            error = error_of(self._stage, functools.partial(self._process, message))
            if error is not None:
                self._fail({group: error})

    def _take_pack(self, message: Message) -> None:
        if message.group in self._open_packs:
            self._outlet.repeat(message.group, 0)
        elif message.x is None:
            self._outlet.notify(Kind.CORRUPTED, message.group)
        else:
            unknown = [part.group for part in message.parts if part.group not in self._steps]
            if unknown:
                raise TransportError(
                    f"{self._stage.name}: a pack has a step of group {unknown[0]}, which has not begun"
                )
            self._steps.update((part.group, part.step) for part in message.parts)
            self._open_packs.add(message.group, [part.group for part in message.parts])
            error = error_of(self._stage, functools.partial(self._process_pack, message))
            if error is not None:
                self._fail(dict.fromkeys((part.group for part in message.parts), error))

    def _process_pack(self, message: Message) -> None:
        assert message.x is not None, "a pack without it is corrupted"
        result = self._stage.forward_pack(message.parts, message.x)
        self._fail(result.errors)
        if result.parts:
            self._outlet.send_pack(message.group, result.parts, result.x)

    def _fail(self, errors: Mapping[int, str]) -> None:
        for group, error in errors.items():
            self._errors[group] = error
            self._outlet.notify(Kind.FAILED, group, error)

    def _process(self, message: Message) -> None:
        if message.begun is not None:
            self._stage.begin(message.begun)
        x = self._stage.forward(message.group, message.step, message.x)
        if x is None:
            return
        if message.begun is not None:
            self._outlet.begin(message.begun, x)
        else:
            self._outlet.send(message.group, message.step, x)


def run_follower(stage: Forward, inlet: Inlet, outlet: Outlet) -> None:
    """Run any other stage until it is told to stop."""
    follower = Follower(stage, outlet)
    while follower.take(inlet.receive()):
        pass


def _is_next(message: Message, last: int | None) -> bool:
    """Whether no step is missing between the last one that arrived of a group and a later one.

    Steps after the prompt are sent one at a time, each by as many further as tokens came of the one before.
    """
    if last is None:
        return message.begun is not None
    return message.step == last + 1 or (message.step > 0 and last >= 0)
