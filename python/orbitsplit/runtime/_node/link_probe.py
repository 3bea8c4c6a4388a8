"""A short exchange between two hosts that shows the rate of their link in both directions, and its round trip."""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import Any

from orbitsplit._errors import TransportError
from orbitsplit.runtime._messages.tls_channel import Credentials, TlsChannel

LOG = logging.getLogger("orbitsplit.runtime")

_PINGS = 5
# What is sent grows fourfold from the first number of bytes until sending takes the seconds, so that neither a slow
# link is occupied for long nor a fast one judged by what a buffer takes; and until two rates in turn are that close,
# since a connection begins slowly where the round trip is long. No more than the most seconds are begun.
_FIRST_BYTES, _MOST_BYTES, _LONG_ENOUGH_S, _MOST_S = 16_384, 16_777_216, 0.2, 5.0
_AGREES = 0.2
_CHUNK = "x" * 65_536
_ANSWER_S = 20.0
# A listener waits so long for the other host, which has to prove the credentials.
_LISTEN_S = 30.0


def listen_once(credentials: Credentials) -> int:
    """Listen for one exchange, and serve it from a thread; return the port."""
    listener = socket.create_server(("", 0))
    listener.settimeout(_LISTEN_S)
    threading.Thread(target=_serve, args=(listener, credentials), name="link probe", daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def _serve(listener: socket.socket, credentials: Credentials) -> None:
    try:
        with listener:
            connection, _ = listener.accept()
        channel = TlsChannel(connection, credentials.server, is_server=True)
        try:
            _answer_all(channel)
        finally:
            channel.release()
    except (OSError, TransportError, ValueError, KeyError, TypeError) as error:
        LOG.warning("an exchange that measures a link ends: %s: %s", type(error).__name__, error)


def _answer_all(channel: TlsChannel) -> None:
    """Answer pings, count what is sent, and send what is asked for, until the other end closes the channel."""
    while (message := channel.receive(_ANSWER_S)) is not None:
        if "ping" in message:
            channel.send({"pong": True})
        elif "take" in message:
            channel.send({"took": _take(channel, int(message["take"]))})
        elif "give" in message:
            _give(channel, min(int(message["give"]), _MOST_BYTES))


def measure_link(address: str, credentials: Credentials) -> dict[str, float]:
    """Exchange messages with a host that listens at "host:port"; return the rates there and back, and the round trip.

    Raises OSError or TransportError if it is not reached, or does not answer.
    """
    channel = TlsChannel.connect(address, credentials)
    try:
        round_trip_s = min(_ping_s(channel) for _ in range(_PINGS))
        there, back = (_rate(channel, round_trip_s, is_outward=way) for way in (True, False))
        return {"bytes_per_s": there, "back_bytes_per_s": back, "round_trip_s": round_trip_s}
    finally:
        channel.release()


def _ping_s(channel: TlsChannel) -> float:
    began_s = time.monotonic()
    channel.send({"ping": True})
    _received(channel)
    return time.monotonic() - began_s


def _rate(channel: TlsChannel, round_trip_s: float, *, is_outward: bool) -> float:
    """Return the bytes per second of one direction."""
    size, before, deadline_s = _FIRST_BYTES, 0.0, time.monotonic() + _MOST_S
    while True:
        sending_s = max(1e-6, _sending_s(channel, size, is_outward=is_outward) - round_trip_s)
        rate = size / sending_s
        is_steady = sending_s >= _LONG_ENOUGH_S and abs(rate - before) <= _AGREES * rate
        if is_steady or size >= _MOST_BYTES or time.monotonic() > deadline_s:
            return rate
        size, before = 4 * size, rate


def _sending_s(channel: TlsChannel, size: int, *, is_outward: bool) -> float:
    """Return the seconds for bytes in one direction, and a round trip: that of the first byte and the answer."""
    began_s = time.monotonic()
    if is_outward:
        channel.send({"take": size})
        _give(channel, size)
        _received(channel)
    else:
        channel.send({"give": size})
        _take(channel, size)
    return time.monotonic() - began_s


def _give(channel: TlsChannel, size: int) -> None:
    for start in range(0, size, len(_CHUNK)):
        channel.send({"data": _CHUNK[: min(len(_CHUNK), size - start)]})


def _take(channel: TlsChannel, size: int) -> int:
    taken = 0
    while taken < size:
        taken += len(_received(channel)["data"])
    return taken


def _received(channel: TlsChannel) -> dict[str, Any]:
    message = channel.receive(_ANSWER_S)
    if message is None:
        raise ConnectionResetError("the other host went away during the exchange")
    return message
