"""Emulated links and nodes: delivery times by hand, and work stretched to a slower node's."""

from __future__ import annotations

import itertools
import math
import random
import time
from dataclasses import replace

import pytest

from orbitsplit._network.link_conditions import LinkShape, LossBursts
from orbitsplit._plans.trace import Recorder
from orbitsplit.runtime._emulation.link_shaper import LinkShaper, PathShaper
from orbitsplit.runtime._emulation.pace import Pace, sleep_until
from orbitsplit.runtime._messages.packs import Part


def test_messages_queue_for_the_rate_and_travel_at_the_same_time() -> None:
    link = LinkShaper(bytes_per_s=100.0, latency_s=5.0)
    assert link.stamp(200, now_s=10.0) == (10.0, 12.0, 17.0)
    assert link.stamp(100, now_s=11.0) == (12.0, 13.0, 18.0)  # waits for the rate, not for the delivery
    assert link.stamp(100, now_s=20.0) == (20.0, 21.0, 26.0)


def test_an_unshaped_link_has_no_occupancy_and_keeps_its_latency() -> None:
    assert LinkShaper(latency_s=0.5).stamp(10**9, now_s=3.0) == (3.0, 3.0, 3.5)


def stamps(
    conditions: LinkShape | None, messages: list[tuple[float, int]], origin_s: float = 0.0, rate: float | None = 100.0
) -> list[tuple[float, float, float]]:
    link = LinkShaper(rate, 0.5, conditions, origin_s)
    return [link.stamp(size, now_s) for now_s, size in messages]


def test_conditions_that_say_nothing_change_nothing() -> None:
    messages = [(10.0, 200), (11.0, 100), (20.0, 0)]
    for rate in (100.0, None):
        assert stamps(LinkShape("a", "b"), messages, rate=rate) == stamps(None, messages, rate=rate)


def test_rate_and_latency_of_the_conditions_replace_the_plans() -> None:
    link = LinkShape("a", "b", bytes_per_s=50.0, latency_s=2.0)
    assert stamps(link, [(10.0, 100)]) == [(10.0, 12.0, 14.0)]
    assert stamps(replace(link, latency_s=0.0), [(10.0, 100)]) == [(10.0, 12.0, 12.0)]


def test_a_rate_that_changes_during_a_message() -> None:
    link = LinkShape("a", "b", rates=((0.0, 100.0), (2.0, 10.0), (3.0, 1000.0)))
    # From second 1 on: 100 bytes, then 10 in one second, then 1000 a second.
    assert stamps(link, [(1001.0, 1110)], origin_s=1000.0) == [(1001.0, 1004.0, 1004.5)]
    assert stamps(link, [(999.0, 100)], origin_s=1000.0) == [(999.0, 1000.0, 1000.5)]  # the first rate holds before


def test_a_message_pauses_while_the_link_is_down_and_what_has_left_arrives() -> None:
    link = LinkShape("a", "b", down=((10.0, 12.0), (13.0, 14.0)))
    messages = [(8.5, 100), (9.5, 100), (10.5, 50), (13.5, 0)]
    assert stamps(link, messages) == [
        (8.5, 9.5, 10.0),
        (9.5, 12.5, 13.0),  # half of it before, half of it after
        (12.5, 13.0, 13.5),  # the last byte leaves as the link goes down
        (14.0, 14.0, 14.5),  # nothing gets through, not even nothing
    ]
    assert stamps(link, [(9.0, 100), (9.0, 10)])[0] == (9.0, 10.0, 10.5)
    assert stamps(link, [(11.0, 10**9)], rate=None) == [(12.0, 12.0, 12.5)]


def test_a_link_down_forever_delivers_at_infinity() -> None:
    link = LinkShape("a", "b", jitter_s=1.0, down=((10.0, math.inf),))
    first, half, never = stamps(link, [(5.0, 100), (9.5, 100), (20.0, 1)])
    assert first[2] < 10.0
    assert half == (9.5, math.inf, math.inf)
    assert never == (20.0, math.inf, math.inf)  # a start that can be waited for and written down
    assert stamps(link, [(11.0, 1), (12.0, 1)], rate=None) == [(k, math.inf, math.inf) for k in (11.0, 12.0)]


def test_a_path_is_its_links_one_after_the_other() -> None:
    first = LinkShape("c", "b", bytes_per_s=10.0, latency_s=0.0)
    second = LinkShape("b", "a", latency_s=2.0, down=((3.0, 6.0),))
    path = PathShaper([LinkShaper(None, 0.5, first), LinkShaper(100.0, 0.5, second)])
    assert path.stamp(10, 1.0) == (1.0, 2.0, 4.1)
    # Whole at the middle in second 3.5, when the second link is down.
    assert path.stamp(10, 2.5) == (2.5, 3.5, 8.1)
    assert path.stamp(10, 20.0) == (20.0, 21.0, 23.1)
    never = PathShaper([LinkShaper(conditions=replace(second, down=((3.0, math.inf),))), LinkShaper(None, 1.0)])
    assert never.stamp(0, 4.0) == (4.0, math.inf, math.inf)


def test_a_path_corrupts_where_one_of_its_links_does() -> None:
    sound, corrupting = LinkShape("c", "b"), LinkShape("b", "a", corrupt=1.0)
    for links, flips in (((sound, sound), 0), ((sound, corrupting), 1), ((corrupting, sound), 1)):
        path, payload = PathShaper([LinkShaper(conditions=link) for link in links]), bytearray(8)
        assert path.corrupts() == (flips == 1)
        path.flip(payload)
        assert sum(byte.bit_count() for byte in payload) == flips


def random_shape(draw: random.Random) -> LinkShape:
    times = sorted(draw.sample(range(1, 64), draw.randrange(0, 12, 2)))
    down = tuple((a / 8, b / 8) for a, b in zip(times[::2], times[1::2], strict=True))
    changes = sorted(draw.sample(range(1, 64), draw.randrange(6)))
    # Whole bytes in each slice of the simulator, so that it adds up without rounding.
    rates = tuple((time / 8, 1024.0 * draw.randint(1, 9)) for time in [0, *changes])
    return LinkShape("a", "b", rates=rates, down=down)


def simulate_slices(link: LinkShape, messages: list[tuple[float, int]], slice_s: float) -> list[tuple[float, float]]:
    """Step through time; in each slice the first message in the queue sends what the rate of that moment allows."""
    queue = [[now_s, float(size), -1.0] for now_s, size in messages]
    found = []
    slice_number = 0
    while queue:
        moment_s = slice_number * slice_s
        up = not any(start_s <= moment_s < stop_s for start_s, stop_s in link.down)
        rate = [bytes_per_s for start_s, bytes_per_s in link.rates if start_s <= moment_s][-1]
        budget = rate * slice_s if up else 0.0
        while budget > 0 and queue and queue[0][0] <= moment_s:
            message = queue[0]
            if message[2] < 0:
                message[2] = moment_s
            sent = min(budget, message[1])
            message[1] -= sent
            budget -= sent
            if message[1] > 0:
                break
            found.append((message[2], moment_s))
            queue.pop(0)
        slice_number += 1
    return found


@pytest.mark.parametrize("seed", range(40))
def test_delivery_agrees_with_a_simulator_in_small_slices(seed: int) -> None:
    draw = random.Random(seed)
    link, slice_s = random_shape(draw), 1 / 1024
    moments = sorted(draw.randrange(8 * 1024) * slice_s for _ in range(12))
    messages = [(moment_s, draw.choice([1, 100, 1000, 5000])) for moment_s in moments]
    origin_s = float(draw.randrange(100_000))
    exact = stamps(link, [(origin_s + moment_s, size) for moment_s, size in messages], origin_s)
    for (start_s, stop_s, deliver_s), slices in zip(exact, simulate_slices(link, messages, slice_s), strict=True):
        assert (start_s - origin_s, stop_s - origin_s) == pytest.approx(slices, abs=2 * slice_s)
        assert deliver_s == stop_s + 0.5


def test_bursts_pause_the_link_at_the_times_drawn() -> None:
    link = LinkShape("a", "b", bursts=LossBursts(0.5, 0.2), seed=4)
    messages = [(k / 3, 50) for k in range(60)]
    times = tuple(itertools.islice(link.outages(), 300))
    assert stamps(link, messages) == stamps(replace(link, bursts=None, down=times), messages)
    assert stamps(link, messages) != stamps(None, messages)


def test_jitter_is_uniform_and_no_message_overtakes_another() -> None:
    link = LinkShape("a", "b", jitter_s=2.0, seed=1)
    apart = stamps(link, [(10.0 * k, 100) for k in range(2000)])
    delays = sorted(deliver_s - stop_s - 0.5 for _, stop_s, deliver_s in apart)
    assert min(delays) > -1e-9
    assert max(delays) < 2.0
    assert all(abs(delay - 2 * k / 2000) < 0.1 for k, delay in enumerate(delays))
    close = stamps(link, [(0.1 * k, 1) for k in range(2000)])
    assert all(a[2] <= b[2] for a, b in itertools.pairwise(close))
    assert all(0.5 - 1e-9 <= deliver_s - stop_s <= 2.5 for _, stop_s, deliver_s in close)
    assert any(a[2] == b[2] for a, b in itertools.pairwise(close))  # some would have overtaken


def test_the_same_seed_and_names_give_the_same_run() -> None:
    link = LinkShape("a", "b", jitter_s=1.0, bursts=LossBursts(1.0, 0.5), corrupt=0.3, seed=1)
    messages = [(k / 2, 50) for k in range(100)]

    def run(link: LinkShape, payload: bytes) -> tuple[list[tuple[float, float, float]], list[int | None]]:
        shaper = LinkShaper(100.0, 0.5, link)
        buffer = bytearray(payload)
        times, bits = [], []
        for now_s, size in messages:
            times.append(shaper.stamp(size, now_s))
            bits.append(shaper.flip(buffer) if shaper.corrupts() else None)
        return times, bits

    times, bits = run(link, bytes(64))
    assert run(link, b"\xff" * 64) == (times, bits)
    for other in (replace(link, seed=2), replace(link, destination="c")):
        assert run(other, bytes(64))[0] != times
        assert run(other, bytes(64))[1] != bits
    # What is corrupted does not change when messages arrive, and the other way round.
    assert run(replace(link, corrupt=0.9), bytes(64))[0] == times
    assert run(replace(link, jitter_s=0.0, bursts=None), bytes(64))[1] == bits


@pytest.mark.parametrize("probability", [0.0, 0.02, 1.0])
def test_messages_are_corrupted_as_often_as_asked(probability: float) -> None:
    link = LinkShaper(conditions=LinkShape("a", "b", corrupt=probability, seed=9))
    share = sum(link.corrupts() for _ in range(20_000)) / 20_000
    deviation = math.sqrt(probability * (1 - probability) / 20_000)
    assert share == pytest.approx(probability, abs=5 * deviation)
    assert not LinkShaper().corrupts()


def test_exactly_one_bit_of_the_payload_is_flipped_anywhere_in_it() -> None:
    link = LinkShaper(conditions=LinkShape("a", "b", corrupt=1.0))
    message = bytearray(range(20))
    flipped = set()
    for _ in range(1000):
        before = bytes(message)
        bit = link.flip(memoryview(message)[12:])
        assert bit is not None
        changes = [a ^ b for a, b in zip(before, message, strict=True)]
        assert changes == [0] * 12 + [1 << bit % 8 if k == bit // 8 else 0 for k in range(8)]
        flipped.add(bit)
    assert flipped == set(range(64))


def test_an_empty_payload_has_nothing_to_flip() -> None:
    assert LinkShaper(conditions=LinkShape("a", "b")).flip(bytearray()) is None


@pytest.mark.parametrize("slowdown", [1.0, 5.0])
def test_work_lasts_slowdown_times_its_processor_time(slowdown: float) -> None:
    recorder = Recorder()
    recorder.begin(1)
    pace = Pace(recorder, slowdown=slowdown)
    assert pace.run("compute", 1, 2, lambda: sum(range(300_000))) == sum(range(300_000))
    ((kind, group, step, start_s, stop_s),), cpu_s = recorder.take(1)
    assert (kind, group, step) == ("compute", 1, 2)
    assert stop_s - start_s >= slowdown * cpu_s > 0
    assert pace.busy_s == stop_s - start_s


def test_waiting_is_not_stretched() -> None:
    recorder = Recorder()
    recorder.begin(0)
    Pace(recorder, slowdown=1000.0).run("compute", 0, 0, lambda: sleep_until(time.monotonic() + 0.01))
    ((*_, start_s, stop_s),), _ = recorder.take(0)
    # Ten milliseconds of sleep take microseconds of processor time, and stretched they would take ten seconds.
    assert stop_s - start_s < 5.0


def test_a_node_held_by_its_transmission_starts_no_work_before() -> None:
    recorder = Recorder()
    recorder.begin(0)
    pace = Pace(recorder)
    free_s = time.monotonic() + 0.02
    pace.hold_until(free_s)
    pace.run("compute", 0, 1, lambda: None)
    pace.run("compute", 0, 2, lambda: None)
    events, _ = recorder.take(0)
    assert [event[0] for event in events] == ["wait", "compute", "compute"]
    assert events[1][3] >= free_s
    assert pace.busy_s == pytest.approx(sum(stop_s - start_s for *_, start_s, stop_s in events[1:]))  # not the wait


def test_a_moment_in_the_past_is_not_waited_for() -> None:
    before_s = time.monotonic()
    sleep_until(before_s - 100.0)
    assert time.monotonic() - before_s < 50.0


def test_shared_work_counts_as_a_step_where_it_has_the_rows_of_the_plan() -> None:
    # That of several groups never did, and a server's drifts were not noticed.
    pace = Pace(Recorder(), planned_rows=2)
    for groups in (1, 2, 3):
        pace.run_shared("compute", [Part(group, 4, 1) for group in range(groups)], lambda: None)
    pace.run_shared("compute", [Part(0, 4, 1), Part(1, 4, 3)], lambda: None, is_planned=False)
    assert [count for count, _ in pace.step_times.totals()] == [1, 0, 0]
