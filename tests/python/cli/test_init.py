"""`orbitsplit init`: a network file from options or answers, which is read back and says what its keys are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orbitsplit as osp
from orbitsplit.__main__ import main
from orbitsplit._cli.inputs import load_network

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in an empty folder and returns its exit code; `answers` are typed at a terminal."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str, answers: str | None = None) -> int:
        given = iter([] if answers is None else answers.split("\n"))
        monkeypatch.setattr(sys, "stdin", _Terminal(answers is not None))
        monkeypatch.setattr("typer.prompt", lambda question, default: next(given) or default)
        monkeypatch.setattr(sys, "argv", ["orbitsplit", "init", *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert next(given, None) is None  # every answer was asked for
        return int(ended.value.code or 0)

    return run


class _Terminal:
    def __init__(self, is_terminal: bool) -> None:
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def rates(network: osp.Network) -> Iterator[tuple[str, str, float, float]]:
    return ((link.source, link.destination, link.bytes_per_s, link.latency_s) for link in network.links)


def test_options_make_a_network_without_a_question(run: Run) -> None:
    assert run("--nodes", "sat-0=8 GB, sat-1=512 MiB,sat-2", "--memory", "2 GB", "--slowdown", "3") == 0
    network = osp.Network.load("network.toml")
    assert [(node.name, node.memory_bytes, node.slowdown) for node in network.nodes] == [
        ("sat-0", 8 * 10**9, 3.0),
        ("sat-1", 512 << 20, 3.0),
        ("sat-2", 2 * 10**9, 3.0),
    ]
    assert len(network.links) == 6
    assert {link.bytes_per_s for link in network.links} == {12.5e6}


def test_a_chain_has_links_between_neighbours_alone(run: Run) -> None:
    assert run("--nodes", "3", "--links", "chain", "--bandwidth", "1 Mbit/s", "--latency", "7 ms", "-o", "n.toml") == 0
    ends = [("node-0", "node-1"), ("node-1", "node-0"), ("node-1", "node-2"), ("node-2", "node-1")]
    assert list(rates(osp.Network.load("n.toml"))) == [(*pair, 125e3, 0.007) for pair in ends]


def test_answers_make_a_network_and_wrong_ones_are_asked_for_again(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = "0\n2\nbig\n8 GBit\n8 GB\n1\n\n4 GB\nfast\n2.5"
    assert run(answers=f"{nodes}\nring\nchain\n10 Mbit/s\n") == 0
    network = osp.Network.load("network.toml")
    assert [(node.name, node.memory_bytes, node.slowdown) for node in network.nodes] == [
        ("big", 8 * 10**9, 1.0),
        ("node-1", 4 * 10**9, 2.5),
    ]
    assert next(rates(network)) == ("big", "node-1", 1.25e6, 0.005)
    printed = capsys.readouterr().out
    for reason in ("number of nodes is '0'", "the memory is '8 GBit'", "the slowdown is 'fast'", "links are 'ring'"):
        assert reason in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "there is no terminal to ask at: give the nodes"),
        (("--nodes", "a=8 GB,a=4 GB"), "2 nodes are called 'a'"),
        (("--nodes", "a=8 parsecs"), "memory of node 'a' is '8 parsecs', expected a number with one of B, kB"),
        (("--nodes", "2", "--bandwidth", "fast"), "the bandwidth is 'fast'"),
        (("--nodes", "0"), "the number of nodes is '0', must be from 1 to 1000"),
        (("--nodes", "1001"), "the number of nodes is '1001', must be from 1 to 1000"),
        (("--nodes", ","), "a network needs at least one node"),
    ],
)
def test_what_makes_no_network_is_named_and_nothing_is_written(
    run: Run, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(*options) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_by_force_alone(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "network.toml").write_text("mine")
    assert run("--nodes", "2") == 2
    assert "network.toml exists already" in capsys.readouterr().err
    assert (tmp_path / "network.toml").read_text() == "mine"
    assert run("--nodes", "2", "--force") == 0
    assert len(osp.Network.load("network.toml").nodes) == 2


def test_a_sample_is_a_network_where_there_is_no_file_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_network(Path("cubesat_chain")) == osp.Network.sample("cubesat_chain")
    osp.Network.sample("cubesat_sband").save("cubesat_chain")
    assert load_network(Path("cubesat_chain")) == osp.Network.sample("cubesat_sband")
    with pytest.raises(FileNotFoundError, match="no-folder"):
        load_network(Path("no-folder/cubesat_chain"))
    with pytest.raises(FileNotFoundError, match=r"no network file .*chian.*: cubesat_chain, cubesat_sband"):
        load_network(Path("cubesat_chian"))
