"""Slow and unreliable links, emulated on one machine by delivery times.

The sender writes the time of delivery into each message, and the receiver waits for that time. This takes no processor
time, does not block the sender and needs no privileges. It requires one monotonic clock for all processes, hence one
host.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from orbitsplit._network.link_conditions import LinkShape


class LinkShaper:
    """Delivery times on one link: messages queue for transmission at its rate, then propagate for its latency.

    Propagation does not occupy the link, so many messages may be in flight at once, but none overtakes another. While
    the link is down, transmission stops; it resumes when the link is up. What was transmitted before arrives. A message
    whose transmission never ends is delivered at infinity; if it never starts, its start is the time it was queued.

    `conditions` describe the link over time, from `origin_s` of the monotonic clock on; their rate and latency override
    the other arguments. Random effects depend on their seed and on the number of earlier messages, so one shaper should
    serve a link as long as the pipeline lives.
    """

    def __init__(
        self,
        bytes_per_s: float | None = None,
        latency_s: float = 0.0,
        conditions: LinkShape | None = None,
        origin_s: float = 0.0,
    ) -> None:
        self.bytes_per_s = bytes_per_s
        self.latency_s = latency_s
        self.free_s = 0.0
        self._conditions = conditions
        if conditions is None:
            return
        if conditions.bytes_per_s is not None:
            self.bytes_per_s = conditions.bytes_per_s
        if conditions.latency_s is not None:
            self.latency_s = conditions.latency_s
        rates = conditions.rates or ((0.0, math.inf if self.bytes_per_s is None else self.bytes_per_s),)
        self._segments = _segments(rates, conditions.outages(), origin_s)
        self._until_s, self._rate = next(self._segments)
        self._delivered_s = 0.0
        # Three generators, so that the number of corrupted messages does not change the next delay.
        self._jitter, self._corrupt, self._bit = (conditions.generator(key) for key in ("jitter", "corrupt", "bit"))

    def stamp(self, size: int, now_s: float) -> tuple[float, float, float]:
        """Queue `size` bytes at `now_s`; return when their transmission starts and ends, and their delivery time."""
        start_s = max(now_s, self.free_s)
        if self._conditions is None:
            self.free_s = start_s if self.bytes_per_s is None else start_s + size / self.bytes_per_s
            return start_s, self.free_s, self.free_s + self.latency_s
        first_s, self.free_s = self._transmit(size, start_s)
        start_s = first_s if first_s < math.inf else now_s
        delay_s = self.latency_s + self._conditions.jitter_s * self._jitter.random()
        self._delivered_s = max(self._delivered_s, self.free_s + delay_s)
        return start_s, self.free_s, self._delivered_s

    def corrupts(self) -> bool:
        """Decide whether the next message is corrupted; call once per message."""
        return self._conditions is not None and self._corrupt.random() < self._conditions.corrupt

    def flip(self, payload: memoryview | bytearray) -> int | None:
        """Flip one random bit of a corrupted message's payload (unsigned bytes); return its index, None if empty."""
        if self._conditions is None or not len(payload):
            return None
        bit = self._bit.randrange(8 * len(payload))
        payload[bit // 8] ^= 1 << bit % 8
        return bit

    def _transmit(self, size: int, at_s: float) -> tuple[float, float]:
        """Return when the first and the last bit of `size` bytes are sent if the link is free from `at_s` on."""
        start_s = at_s = self._next_up(at_s)
        left = float(size)
        while at_s < math.inf and at_s + left / self._rate > self._until_s:
            # Rounding may subtract slightly more than is left.
            left = max(0.0, left - (self._until_s - at_s) * self._rate)
            at_s = self._next_up(self._until_s)
        return start_s, at_s if at_s == math.inf else at_s + left / self._rate

    def _next_up(self, at_s: float) -> float:
        """Advance to the segment of the first time from `at_s` on at which the link is up; return that time."""
        while at_s < math.inf:
            if at_s >= self._until_s:
                self._until_s, self._rate = next(self._segments)
            elif self._rate == 0.0:
                at_s = self._until_s
            else:
                break
        return at_s


class PathShaper:
    """Delivery times over several links one after the other: each node sends a message on when all of it has arrived.

    It is used as a `LinkShaper` is; a message occupies the first link only for its sender.
    """

    def __init__(self, links: Sequence[LinkShaper]) -> None:
        self._links = links
        self._corrupting: list[LinkShaper] = []

    def stamp(self, size: int, now_s: float) -> tuple[float, float, float]:
        """Queue `size` bytes at `now_s`; return when they start and stop to occupy the first link, and arrive."""
        start_s, stop_s, delivered_s = self._links[0].stamp(size, now_s)
        for link in self._links[1:]:
            if delivered_s == math.inf:
                break
            delivered_s = link.stamp(size, delivered_s)[2]
        return start_s, stop_s, delivered_s

    def corrupts(self) -> bool:
        """Decide whether the next message is corrupted on any of the links; call once per message."""
        self._corrupting = [link for link in self._links if link.corrupts()]
        return bool(self._corrupting)

    def flip(self, payload: memoryview | bytearray) -> int | None:
        """Flip a bit for each link that corrupts the message; return the index of the last, None if it is empty."""
        flipped = None
        for link in self._corrupting:
            flipped = link.flip(payload)
        return flipped


def _segments(
    rates: Sequence[tuple[float, float]], outages: Iterable[tuple[float, float]], origin_s: float
) -> Iterator[tuple[float, float]]:
    """Yield (end, rate) of the segments in order, the last one to infinity; the rate is 0 while the link is down."""
    ends = [*(start_s for start_s, _ in rates[1:]), math.inf]
    k = 0
    for down_s, up_s in itertools.chain(outages, [(math.inf, math.inf)]):
        while ends[k] < down_s:
            yield origin_s + ends[k], rates[k][1]
            k += 1
        yield origin_s + down_s, rates[k][1]
        yield origin_s + up_s, 0.0
        while ends[k] <= up_s < math.inf:
            k += 1
