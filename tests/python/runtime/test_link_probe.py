"""The exchange that measures a link between two hosts, over the loopback interface."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orbitsplit.runtime._messages.tls_channel import Credentials, RefusedError, TlsChannel, create_credentials
from orbitsplit.runtime._node import link_probe
from orbitsplit.runtime._node.link_probe import listen_once, measure_link


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    create_credentials(tmp_path / "fleet.pem")
    return Credentials(tmp_path / "fleet.pem")


def test_a_link_has_a_rate_in_both_directions_and_a_round_trip(credentials: Credentials) -> None:
    found = measure_link(f"127.0.0.1:{listen_once(credentials)}", credentials)
    # No bounds from above: a shared machine may be as slow as it likes.
    assert found["bytes_per_s"] > 1e4
    assert found["back_bytes_per_s"] > 1e4
    assert 0 < found["round_trip_s"] < 10


def most_measured(credentials: Credentials, *, above: float) -> dict[str, float]:
    """Return the highest rates of ten measurements, or the first above a limit: a busy machine only lowers them."""
    found: dict[str, float] = {}
    for _ in range(10):
        measured = measure_link(f"127.0.0.1:{listen_once(credentials)}", credentials)
        found = {name: max(value, found.get(name, 0.0)) for name, value in measured.items()}
        if min(found["bytes_per_s"], found["back_bytes_per_s"]) > above:
            break
    return found


def test_the_rate_is_that_of_the_slower_end(credentials: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent is seen to take as long as the link makes it."""
    send = TlsChannel.send

    def slowly(channel: TlsChannel, message: dict[str, object]) -> None:
        if "data" in message:
            time.sleep(len(str(message["data"])) / 50_000)
        send(channel, message)

    monkeypatch.setattr(TlsChannel, "send", slowly)
    found = most_measured(credentials, above=10_000)
    assert 10_000 < found["bytes_per_s"] <= 50_000
    assert 10_000 < found["back_bytes_per_s"] <= 50_000


def test_a_connection_that_begins_slowly_is_measured_at_its_full_rate(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Over a long round trip the first bytes took long enough, and a sixth of the rate was found.
    round_trip_s, full = 0.05, 100_000  # of the window: 2 MB/s
    windows: dict[TlsChannel, list[int]] = {}
    send = TlsChannel.send

    def as_tcp(channel: TlsChannel, message: dict[str, object]) -> None:
        """Send a window in each round trip; it doubles as in TCP's slow start."""
        left, window = len(str(message.get("data", ""))), windows.setdefault(channel, [16_384, 0])
        while left > 0:
            part = min(left, window[0] - window[1])
            time.sleep(round_trip_s * part / window[0])
            left, window[1] = left - part, window[1] + part
            if window[1] == window[0]:
                window[:] = [min(2 * window[0], full), 0]
        send(channel, message)

    monkeypatch.setattr(TlsChannel, "send", as_tcp)
    monkeypatch.setattr(link_probe, "_LONG_ENOUGH_S", round_trip_s)
    found = most_measured(credentials, above=7e5)
    assert 7e5 < found["bytes_per_s"] <= 2.1e6
    assert 7e5 < found["back_bytes_per_s"] <= 2.1e6


def test_another_host_is_refused(credentials: Credentials, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    create_credentials(tmp_path / "other.pem")
    with pytest.raises(RefusedError):
        measure_link(f"127.0.0.1:{listen_once(credentials)}", Credentials(tmp_path / "other.pem"))
