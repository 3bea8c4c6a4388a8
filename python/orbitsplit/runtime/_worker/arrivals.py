"""What is known of a message when it has arrived: the groups that it is of, and the times of its way."""

from __future__ import annotations

from collections.abc import Sequence

from orbitsplit._errors import TransportError
from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._messages.framing import Header
from orbitsplit.runtime._messages.packs import FIRST_PACK, Part, unpack_parts
from orbitsplit.runtime._schedule.protocol import Kind

_KINDS = {int(kind): kind for kind in Kind}  # a third of the time of a look-up in the enumeration


def kind_of(header: Header, link: str) -> Kind:
    """Return the kind of a message. Raises TransportError if there is none."""
    try:
        return _KINDS[header.kind]
    except KeyError:
        raise TransportError(f"{link}: a message is of kind {header.kind}, which does not exist") from None


def parts_of(header: Header, description: memoryview, link: str) -> tuple[Part, ...]:
    """Return the parts of a pack. Raises TransportError if they are not those that its header announces."""
    try:
        parts = unpack_parts(description)
    except ValueError as error:
        raise TransportError(f"{link}: {error}") from error
    tokens = sum(part.tokens for part in parts)
    if header.group < FIRST_PACK or header.tokens != tokens or any(part.group >= FIRST_PACK for part in parts):
        raise TransportError(f"{link}: pack {header.group} of {header.tokens} tokens has parts of {tokens}")
    return parts


def record_arrival(pace: Pace, header: Header, asked_s: float, got_s: float, parts: Sequence[Part]) -> None:
    """Record the wait for a message of these steps: until its delivery time, and from there to its arrival."""
    due_s = got_s
    if header.deliver_s:  # a link that is not emulated has no delivery times
        due_s = min(max(asked_s, header.deliver_s), got_s)
    for part in parts:
        pace.recorder.add("wait", part.group, part.step, asked_s, due_s)
        if header.deliver_s:
            pace.recorder.add("receive", part.group, part.step, due_s, got_s)
