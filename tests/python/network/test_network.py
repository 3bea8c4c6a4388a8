"""Networks from TOML: the sample, units, direction of links, and every mistake named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitsplit import Link, Network, Node

ONE_NODE = '[[nodes]]\nname = "a"\nmemory = "1 GB"\nslowdown = 2\n'
TWO_NODES = ONE_NODE + '[[nodes]]\nname = "b"\nmemory = 5e8\ncompute = "2 TFLOP/s"\nmemory_bandwidth = "10 GB/s"\n'


def test_sample_is_four_unequal_satellites_with_10_mbit_links() -> None:
    network = Network.sample("cubesat_chain")
    assert len(network.nodes) == 4
    assert len({(node.memory_bytes, node.slowdown) for node in network.nodes}) == 4
    # Gemma 3 270M in float32: 262,144 x 640 embeddings and 18 layers of 5.57 million parameters.
    assert all(node.memory_bytes < 4 * (262_144 * 640 + 18 * 5_572_000) for node in network.nodes)
    assert {link.bytes_per_s for link in network.links} == {10e6 / 8}


def test_units_are_stored_in_si() -> None:
    network = Network.from_toml(
        TWO_NODES + '[[links]]\nsource = "a"\ndestination = "b"\nbandwidth = "0.5 Gbit/s"\nlatency = "5 ms"\n'
    )
    assert network.nodes[1] == Node("b", 500_000_000, flop_per_s=2e12, memory_bytes_per_s=1e10)
    assert network.links == (Link("a", "b", 62.5e6, 0.005),)
    assert network.bandwidth_bytes_per_s().tolist() == [[0, 62.5e6], [0, 0]]
    assert network.latency_s().tolist() == [[0, 0.005], [0, 0]]


def test_files_of_version_0_1_name_the_ends_from_and_to() -> None:
    new = TWO_NODES + '[[links]]\nsource = "a"\ndestination = "b"\nbandwidth = 1\n'
    old = new.replace("source", "from").replace("destination", "to")
    assert Network.from_toml(old) == Network.from_toml(new)
    assert 'source = "a"\ndestination = "b"\n' in Network.from_toml(old).to_toml()
    with pytest.raises(ValueError, match="lacks 'from'"):
        Network.from_toml(new.replace("destination", "to"))


def test_the_old_name_of_a_links_destination_still_works_and_warns() -> None:
    link = Link("a", "b", 1.0)
    with pytest.warns(DeprecationWarning, match="Link.target is now Link.destination; the old name goes in") as caught:
        assert link.target == "b"
    with pytest.warns(DeprecationWarning, match=r"Link\(target=\) is now Link\(destination=\)"):
        assert Link("a", target="b", bytes_per_s=1.0) == link  # type: ignore[call-arg]
    assert {warning.filename for warning in caught} == {__file__}
    with pytest.raises(TypeError, match="got 'target' and 'destination', which are the same argument"):
        Link("a", target="b", destination="b", bytes_per_s=1.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'aim'"):
        Link("a", aim="b", bytes_per_s=1.0)  # type: ignore[call-arg]


def test_between_joins_both_ways() -> None:
    network = Network.from_toml(TWO_NODES + '[[links]]\nbetween = ["a", "b"]\nbandwidth = "8 bit/s"\n')
    assert network.bandwidth_bytes_per_s().tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 3 =", "is not TOML"),
        ("", "lacks 'nodes'"),
        ("nodes = 3", "array of tables"),
        ("nodes = []", "at least one node"),
        ('[[nodes]]\nname = "a"\nmemory = "1 GB"\n', "needs a speed"),
        (ONE_NODE.replace("slowdown = 2", "slowdown = 0"), "slowdown of node 'a' is 0, must be above 0"),
        (ONE_NODE.replace("slowdown = 2", 'slowdown = "fast"'), "slowdown is 'fast'"),
        (ONE_NODE.replace("1 GB", "1 parsec"), "memory is '1 parsec'"),
        (ONE_NODE.replace("1 GB", "-1 GB"), "must be finite and not negative"),
        (ONE_NODE + "headroom = 2e9\n", "headroom of node 'a' is 2000000000 bytes, its memory 1000000000"),
        (ONE_NODE + "half_duplex = 1\n", "half_duplex is 1"),
        (ONE_NODE + "colour = 1\n", "unknown key 'colour'"),
        (ONE_NODE + ONE_NODE, "2 nodes are called 'a'"),
        (ONE_NODE + '[[links]]\nsource = "a"\ndestination = "c"\nbandwidth = 1\n', "names node 'c'"),
        (ONE_NODE + '[[links]]\nsource = "a"\ndestination = "a"\nbandwidth = 1\n', "to itself"),
        (TWO_NODES + '[[links]]\nbetween = ["a"]\nbandwidth = 1\n', "expected two node names"),
        (TWO_NODES + '[[links]]\nsource = "a"\ndestination = "b"\n', "lacks 'bandwidth'"),
        (TWO_NODES + '[[links]]\nsource = "a"\ndestination = "b"\nbandwidth = 0\n', "must be > 0"),
        (TWO_NODES + 2 * '[[links]]\nsource = "a"\ndestination = "b"\nbandwidth = 1\n', "two links from 'a' to 'b'"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network.from_toml(text)


def test_unknown_sample_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="cubesat_chain"):
        Network.sample("death_star")


def test_unknown_node_is_named() -> None:
    with pytest.raises(ValueError, match="no node 'z'; the nodes are a"):
        Network.from_toml(ONE_NODE).index("z")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_bytes": float("nan")}, "memory_bytes of node 'a' is nan"),
        ({"headroom_bytes": -50}, "headroom_bytes of node 'a' is -50"),
        ({"slowdown": None, "flop_per_s": float("inf")}, "flop_per_s of node 'a' is inf"),
        ({"slowdown": None, "flop_per_s": 0}, "must be positive"),
        ({"slowdown": None, "flop_per_s": 1, "memory_bytes_per_s": -1}, "memory_bytes_per_s of node 'a' is -1"),
        ({"flop_per_s": 1}, "not both"),
    ],
)
def test_a_node_that_makes_no_sense_is_named(changes: dict[str, Any], message: str) -> None:
    # A negative headroom once granted memory that the node does not have.
    with pytest.raises(ValueError, match=message):
        Node(**{"name": "a", "memory_bytes": 100, "slowdown": 1.0, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "name of a node is 3, must be a string"),
        ({"memory_bytes": "8 GB"}, "memory_bytes of node 'a' is '8 GB', must be a number"),
        ({"memory_bytes": None}, "memory_bytes of node 'a' is None, must be a number"),
        ({"slowdown": True}, "slowdown of node 'a' is True, must be a number"),
        ({"half_duplex": 1}, "half_duplex of node 'a' is 1, must be true or false"),
    ],
)
def test_a_wrong_type_of_a_node_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        Node(**{"name": "a", "memory_bytes": 100, "slowdown": 1.0, **changes})


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (("a", 3, 1.0, 0.0), "destination of a link is 3, must be a string"),
        (("a", "b", "1 Mbit/s", 0.0), "bandwidth of 'a' -> 'b' is '1 Mbit/s', must be a number"),
        (("a", "b", 1.0, None), "latency of 'a' -> 'b' is None, must be a number"),
    ],
)
def test_a_wrong_type_of_a_link_is_named(ends: tuple[Any, ...], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        Link(*ends)


# What UTF-8 can hold: quotes, backslashes, newlines, control characters and all planes, but no half of a pair.
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
WHOLE = st.integers(0, 2**80)


@st.composite
def nodes(draw: st.DrawFn, name: str) -> Node:
    memory_bytes = draw(WHOLE)
    is_slowdown = draw(st.booleans())
    return Node(
        name,
        memory_bytes,
        slowdown=draw(st.floats(min_value=1, allow_infinity=False)) if is_slowdown else None,
        flop_per_s=None if is_slowdown else draw(POSITIVE),
        memory_bytes_per_s=draw(st.none() | POSITIVE),
        headroom_bytes=draw(st.integers(0, memory_bytes)),
        half_duplex=draw(st.booleans()),
    )


@st.composite
def networks(draw: st.DrawFn) -> Network:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    ends = [(a, b) for a in names for b in names if a != b]
    pairs = draw(st.lists(st.sampled_from(ends), unique=True)) if ends else []
    links = [Link(*pair, draw(POSITIVE), draw(st.just(0.0) | POSITIVE)) for pair in pairs]
    return Network(draw(NAMES), tuple(draw(nodes(name)) for name in names), tuple(links))


@settings(max_examples=200, deadline=None)
@given(networks())
def test_what_was_written_is_read_back_exactly(network: Network) -> None:
    assert Network.from_toml(network.to_toml()) == network


def test_a_saved_network_is_what_load_reads(tmp_path: Path) -> None:
    path = tmp_path / "network.toml"
    name = 'a "quoted" \\ name\r\nof \u4e24 \U0001f6f0 lines\x7f'
    # Links of constellations may have NumPy's numbers.
    link = Link(name, "b", np.float64(62.5e6), np.float64(1 / 3))  # type: ignore[arg-type]
    network = Network(name, (Node(name, 2**60 + 1, slowdown=4), Node("b", 0, flop_per_s=1e300)), (link,))
    network.save(path)
    assert Network.load(path) == network
    sample = Network.sample("cubesat_chain")
    sample.save(path)
    assert Network.load(path) == sample


def test_a_name_that_utf_8_cannot_hold_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "network.toml"
    path.write_text(ONE_NODE)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        Network("half of a pair: \ud83d", (Node("a", 1, slowdown=1),)).save(path)
    assert path.read_text() == ONE_NODE


ODD = Network(
    'it\'s "odd"',
    (
        Node("a", 123_456_789, slowdown=0.1, headroom_bytes=50_000_000, half_duplex=True),
        Node("b", 8 * 10**9, flop_per_s=1.25e12, memory_bytes_per_s=204.8e9, device="cuda:1"),
    ),
    (Link("a", "b", 1e6 / 3, 1 / 3), Link("b", "a", 125.0)),
    (("a", ("layer 3", 4)),),
)


@pytest.mark.parametrize(
    "network",
    [
        *map(Network.sample, ("cubesat_chain", "cubesat_sband")),
        ODD,
        Network("one", (Node("a", 1, slowdown=1.0),)),
    ],
    ids=lambda network: network.name,
)
def test_a_file_with_comments_is_the_same_network(network: Network) -> None:
    text = network.to_toml(comments=True)
    found = Network.from_toml(text)
    assert (found.name, found.nodes, found.pins) == (network.name, network.nodes, network.pins)
    assert set(found.links) == set(network.links)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 120


def test_a_file_with_comments_has_units_and_links_of_both_directions() -> None:
    text = Network.sample("cubesat_sband").to_toml(comments=True)
    assert 'memory = "800 MB"\nheadroom = "50 MB"\nslowdown = 2.5\n' in text
    assert text.count("between = [") == 6
    assert 'bandwidth = "250 kbit/s"\nlatency = "6 ms"\n' in text
