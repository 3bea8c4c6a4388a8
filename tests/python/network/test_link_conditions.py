"""Link conditions: every key of the file, exact round trips, random times by the seed, and every mistake named."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from orbitsplit._network.link_conditions import LinkConditions, LinkShape, LossBursts

EXAMPLE = """
seed = 7
[[links]]
between = ["sat-0", "sat-1"]
latency = "4 ms"
jitter = "2 ms"
rates = [["0 s", "10 Mbit/s"], ["1 min", "1 Mbit/s"]]
down = [["10 s", "12.5 s"], [20, "forever"]]
bursts = { every = "5 s", lasting = "200 ms" }
corrupt = 0.001
[[links]]
source = "sat-1"
destination = "ground"
bandwidth = "8 kbit/s"
"""
FORTH = LinkShape(
    "sat-0",
    "sat-1",
    latency_s=0.004,
    jitter_s=0.002,
    rates=((0.0, 1_250_000.0), (60.0, 125_000.0)),
    down=((10.0, 12.5), (20.0, math.inf)),
    bursts=LossBursts(5.0, 0.2),
    corrupt=0.001,
    seed=7,
)
LINK = '[[links]]\nsource = "a"\ndestination = "b"\n'


def test_every_key_is_read_in_si_units() -> None:
    conditions = LinkConditions.from_toml(EXAMPLE)
    back = replace(FORTH, source="sat-1", destination="sat-0")
    assert conditions == LinkConditions((FORTH, back, LinkShape("sat-1", "ground", bytes_per_s=1000.0)), seed=7)
    assert conditions.of("sat-1", "sat-0") == back
    assert conditions.of("ground", "sat-1") is None


def test_files_and_documents_of_version_0_1_are_read() -> None:
    old = EXAMPLE.replace("source =", "from =").replace("destination =", "to =")
    assert LinkConditions.from_toml(old) == LinkConditions.from_toml(EXAMPLE)
    document = LinkConditions.from_toml(EXAMPLE).to_dict()
    links = [{"target" if key == "destination" else key: link[key] for key in link} for link in document["links"]]
    assert LinkConditions.from_dict({**document, "links": links}) == LinkConditions.from_toml(EXAMPLE)
    with pytest.raises(ValueError, match=r"links\[0\] lacks 'to'"):
        LinkConditions.from_toml('[[links]]\nfrom = "a"\ndestination = "b"\n')


def test_the_old_name_of_the_destination_still_works_and_warns() -> None:
    conditions = LinkConditions.from_toml(EXAMPLE)
    with pytest.warns(DeprecationWarning, match="LinkShape.target is now LinkShape.destination"):
        assert conditions.links[0].target == "sat-1"
    with pytest.warns(DeprecationWarning, match="of\\(target=\\) is now LinkConditions.of\\(destination=\\)"):
        assert conditions.of("sat-1", target="sat-0") == conditions.of("sat-1", "sat-0")  # type: ignore[call-arg]


def test_a_file_is_read_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "links.toml"
    path.write_text(EXAMPLE, encoding="utf-8")
    assert LinkConditions.load(path) == LinkConditions.from_toml(EXAMPLE)
    path.write_text(EXAMPLE.replace("0.001", "1.5"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"links.toml: links\[0\]: corrupt of 'sat-0' -> 'sat-1' is 1.5"):
        LinkConditions.load(path)


def test_what_is_not_said_stays_the_plans() -> None:
    (link,) = LinkConditions.from_toml(LINK).links
    assert link == LinkShape("a", "b")
    assert (link.bytes_per_s, link.latency_s, link.jitter_s, link.corrupt) == (None, None, 0.0, 0.0)
    assert list(link.outages()) == []


def test_conditions_survive_json_exactly() -> None:
    odd = LinkShape("ä -> b", "b", jitter_s=0.1 + 0.2, rates=((0.0, 1e9 / 3), (1e-9, 7.0)))
    for conditions in (LinkConditions.from_toml(EXAMPLE), LinkConditions((odd,), seed=-3), LinkConditions()):
        text = json.dumps(conditions.to_dict(), allow_nan=False)
        assert LinkConditions.from_dict(json.loads(text)) == conditions
        assert LinkConditions.from_dict(conditions.to_dict()) == conditions


def test_the_seed_of_the_set_is_that_of_its_links_and_nothing_changes_later() -> None:
    conditions = LinkConditions((LinkShape("a", "b", seed=1),), seed=2)
    assert conditions.links[0].seed == 2
    with pytest.raises(FrozenInstanceError):
        conditions.seed = 3  # type: ignore[misc]


def test_lists_are_taken_for_times() -> None:
    link = LinkShape("a", "b", rates=[[0, 5]], down=[[1, 2]])  # type: ignore[arg-type]
    assert (link.rates, link.down) == (((0.0, 5.0),), ((1.0, 2.0),))
    assert hash(link) == hash(LinkShape("a", "b", rates=((0.0, 5.0),), down=((1.0, 2.0),)))


def test_nodes_are_checked_against_those_there_are() -> None:
    conditions = LinkConditions.from_toml(EXAMPLE)
    conditions.check(iter(["sat-0", "sat-1", "ground", "unused"]))
    with pytest.raises(ValueError, match="the conditions name node 'ground'; the nodes are sat-0, sat-1"):
        conditions.check(["sat-0", "sat-1"])


def test_conditions_may_name_nodes_that_a_plan_leaves_out() -> None:
    conditions = LinkConditions((LinkShape("a", "b"), LinkShape("b", "c"), LinkShape("d", "c")))
    assert conditions.nodes_left_out(["a", "b", "c", "d"]) == ()
    assert conditions.nodes_left_out(iter(["b", "a"])) == ("c", "d")
    assert LinkConditions(()).nodes_left_out(["a"]) == ()
    # None of the links can be of this plan: these are the conditions of another one.
    with pytest.raises(ValueError, match="the conditions name node 'b'; the nodes are a, c"):
        conditions.nodes_left_out(["a", "c"])


def first_outages(link: LinkShape, count: int) -> list[tuple[float, float]]:
    return list(itertools.islice(link.outages(), count))


def test_bursts_depend_on_seed_and_names_alone() -> None:
    link = LinkShape("a", "b", bursts=LossBursts(5.0, 0.2), seed=1)
    times = first_outages(link, 50)
    assert times == first_outages(replace(link, jitter_s=1.0, corrupt=0.5), 50)
    others = [replace(link, seed=2), replace(link, source="b", destination="a"), replace(link, destination="c")]
    assert all(first_outages(other, 50) != times for other in others)
    # Written down, so that neither another process nor another version draws other times for the same file.
    assert times[0] == pytest.approx((4.708058329227883, 4.842036004747959), abs=1e-12)


def test_bursts_have_the_given_means_and_are_exponential() -> None:
    count = 20_000
    times = first_outages(LinkShape("a", "b", bursts=LossBursts(5.0, 0.2), seed=3), count)
    assert all(a < b < c for (a, b), (c, _) in itertools.pairwise(times))
    gaps = [start - stop for (_, stop), (start, _) in zip([(0.0, 0.0), *times], times, strict=False)]
    lengths = [stop - start for start, stop in times]
    for values, mean in ((gaps, 5.0), (lengths, 0.2)):
        # The mean of n exponential values deviates by mean / sqrt(n); a share exp(-x) exceeds x times the mean.
        assert sum(values) / count == pytest.approx(mean, rel=5 / math.sqrt(count))
        for x in (0.1, 1.0, 3.0):
            assert sum(value > x * mean for value in values) / count == pytest.approx(math.exp(-x), abs=0.02)


def test_bursts_and_times_down_become_one_list() -> None:
    bursts = LossBursts(1.0, 1.0)
    down = ((2.0, 4.5), (7.0, 7.5), (7.5, 8.0), (30.0, 31.0))
    alone = first_outages(LinkShape("a", "b", bursts=bursts, seed=5), 60)
    both = first_outages(LinkShape("a", "b", bursts=bursts, down=down, seed=5), 40)
    assert all(a < b < c for (a, b), (c, _) in itertools.pairwise(both))
    for k in range(6_000):
        moment_s = k / 100 + 0.0049
        if moment_s < both[-1][0]:
            expected = any(a <= moment_s < b for a, b in [*alone, *down])
            assert any(a <= moment_s < b for a, b in both) == expected, moment_s


def test_what_is_down_forever_has_a_last_outage() -> None:
    link = LinkShape("a", "b", bursts=LossBursts(1.0, 0.1), down=((50.0, math.inf),), seed=1)
    times = list(link.outages())
    assert times[-1][0] <= 50.0
    assert times[-1][1] == math.inf
    assert len(times) > 10


def text(line: str) -> str:
    return LINK + line + "\n"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("links = ", "is not TOML"),
        ("", "conditions lacks 'links'"),
        ("links = 3", "links must be an array of tables"),
        ("colour = 1\nlinks = []", "unknown key 'colour'; known: links, seed"),
        ('seed = "x"\nlinks = []', "conditions: seed is 'x', must be an integer"),
        ("seed = 3000000000\nlinks = []", "seed is 3000000000, must be at most 2147483647"),
        ('[[links]]\nsource = "a"\n', r"links\[0\] lacks 'destination'"),
        (
            '[[links]]\nsource = "a"\ndestination = 3\n',
            r"links\[0\]: source and destination is \['a', 3\], expected two node names",
        ),
        ('[[links]]\nbetween = ["a"]\n', r"between is \['a'\], expected two node names"),
        ('[[links]]\nbetween = ["a", "a"]\n', "link from node 'a' to itself"),
        ('[[links]]\nbetween = ["a", "b"]\nsource = "a"\n', "unknown key 'source'"),
        (LINK + LINK, "conditions: the link 'a' -> 'b' appears twice"),
        (LINK + '[[links]]\nbetween = ["b", "a"]\n', "the link 'a' -> 'b' appears twice"),
        (text("loss = 1"), r"links\[0\] has the unknown key 'loss'; known: source, destination, bandwidth"),
        (text('bandwidth = "10 parsec"'), r"links\[0\].bandwidth is '10 parsec', expected a number with one of"),
        (text("bandwidth = -1"), r"links\[0\].bandwidth is -1, it must be finite and not negative"),
        (text("bandwidth = 0"), "bandwidth of 'a' -> 'b' is 0.0, must be finite and > 0"),
        (text('latency = "-1 ms"'), r"links\[0\].latency is '-1 ms', it must be finite and not negative"),
        (text("jitter = inf"), r"links\[0\].jitter is inf, it must be finite"),
        (text("corrupt = 1.5"), "corrupt of 'a' -> 'b' is 1.5, must be finite and from 0 to 1"),
        (text("corrupt = nan"), "corrupt of 'a' -> 'b' is nan"),
        (text('corrupt = "1 %"'), "corrupt of 'a' -> 'b' is '1 %', must be a number"),
        (text("bandwidth = 1\nrates = [[0, 1]]"), "'a' -> 'b' has both bandwidth and rates"),
        (text("rates = 3"), r"links\[0\].rates is 3, expected a list of pairs"),
        (text("rates = [[0, 1], [1]]"), r"links\[0\].rates\[1\] is \[1\], expected a pair"),
        (text('rates = [[0, "1 s"]]'), r"links\[0\].rates\[0\] is '1 s', expected a number with one of"),
        (text("rates = [[1, 1]]"), "rates of 'a' -> 'b' start at 1 s, must start at 0 s"),
        (text("rates = [[0, 1], [5, 0]]"), "rates of 'a' -> 'b' from 5 s is 0.0, must be finite and > 0"),
        (text("rates = [[0, 1], [5, 2], [5, 1]]"), "change at 5 s and then at 5 s, times must increase"),
        (text("down = [[2, 1]]"), "down of 'a' -> 'b' is from 2 s to 1 s, must be from 0 s or later to a later time"),
        (text("down = [[1, 1]]"), "is from 1 s to 1 s"),
        (text("down = [[1, 3], [2, 4]]"), "down of 'a' -> 'b' is to 3 s and then from 2 s, must be in order and apart"),
        (text('down = [[1, "forever"], [2, 4]]'), "is to inf s and then from 2 s"),
        (text('down = [["forever", 1]]'), r"links\[0\].down\[0\] is 'forever', expected a number"),
        (text("down = [[1, 2, 3]]"), r"links\[0\].down\[0\] is \[1, 2, 3\], expected a pair"),
        (text("bursts = 3"), r"links\[0\].bursts is 3, expected { every = ..., lasting = ... }"),
        (text("bursts = { every = 1 }"), r"links\[0\].bursts lacks 'lasting'"),
        (text("bursts = { every = 1, lasting = 1, for = 1 }"), "bursts has the unknown key 'for'"),
        (text('bursts = { every = "x", lasting = 1 }'), r"^conditions: links\[0\].bursts.every is 'x', expected"),
        (text("bursts = { every = 0, lasting = 1 }"), r"links\[0\].bursts: every of bursts is 0.0, .* at least 0.001"),
        (text("bursts = { every = 1, lasting = 0 }"), "lasting of bursts is 0, must be > 0"),
    ],
)
def test_mistakes_in_a_file_are_named(toml: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        LinkConditions.from_toml(toml)
    assert str(caught.value).startswith("conditions")


def changed(link: dict[str, Any]) -> dict[str, Any]:
    return {**LinkConditions().to_dict(), "links": [{"source": "a", "destination": "b", **link}]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "expected format 'orbitsplit-link-conditions' version 1"),
        ({**LinkConditions().to_dict(), "colour": 3}, 'the conditions has the unknown key "colour"'),
        (changed({"colour": 3}), r'links\[0\] has the unknown key "colour"'),
        (changed({"bytes_per_s": math.inf}), "bandwidth of 'a' -> 'b' is inf, must be finite"),
        (changed({"rates": [3]}), r"rates of 'a' -> 'b'\[0\] is 3, expected a pair"),
        (changed({"down": [[math.nan, 1]]}), "down of 'a' -> 'b' is from nan s to 1 s"),
        (changed({"rates": [[0, 1], [math.inf, 1]]}), "change at 0 s and then at inf s"),
        (changed({"bursts": {"every_s": 1}}), r'links\[0\].bursts has no key "lasting_s"'),
        (changed({"bursts": {"every_s": math.inf, "lasting_s": 1}}), "every of bursts is inf, must be finite"),
    ],
)
def test_mistakes_in_a_document_are_named(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinkConditions.from_dict(document)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({**LinkConditions().to_dict(), "links": 3}, "links is int, must be a list"),
        (changed({"source": 3}), "source of a link is 3, must be a string"),
        (changed({"seed": 0.5}), "seed is 0.5, must be an integer"),
        (changed({"bytes_per_s": "1"}), "bandwidth of 'a' -> 'b' is '1', must be a number"),
        (changed({"rates": 3}), "rates of 'a' -> 'b' is int, must be a list"),
        (changed({"down": [[1, "never"]]}), r"down of 'a' -> 'b'\[0\] is 'never', must be a number"),
    ],
)
def test_wrong_types_in_a_document_are_named(document: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        LinkConditions.from_dict(document)


@pytest.mark.parametrize(
    "make", [lambda: LinkShape("a", "b", latency_s=-1.0), lambda: LinkShape("a", "b", jitter_s=-1.0)]
)
def test_times_are_not_negative(make: Callable[[], LinkShape]) -> None:
    with pytest.raises(ValueError, match=r"of 'a' -> 'b' is -1.0, must be finite and at least 0"):
        make()
