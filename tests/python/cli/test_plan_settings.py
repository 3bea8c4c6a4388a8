"""`orbitsplit plan --rows --draft-tokens`, `pareto --over latency`: how sequences run, and why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import orbitsplit as osp
from orbitsplit.__main__ import main
from tests.support.setting_cases import PROMPT, make_case

CASE = make_case(1, fixed=20.0)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    CASE.profile.save(tmp_path / "profile.json")
    CASE.network.save(tmp_path / "network.toml")
    files = [str(tmp_path / "profile.json"), "--network", str(tmp_path / "network.toml")]
    return ["plan", *files, "--micro-batches", "4", "--new-tokens", "6"]


def orbitsplit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["orbitsplit", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize("rows", [None, "2", "auto"])
def test_rows_are_those_of_the_option(
    arguments: list[str], rows: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not orbitsplit(monkeypatch, *arguments, *(() if rows is None else ("--rows", rows)), "--json")
    workload = osp.Workload(micro_batches=4, prompt_tokens=PROMPT, new_tokens=6)
    expected = osp.plan(CASE.profile, CASE.network, workload, rows=2 if rows == "2" else "auto" if rows else None)
    assert osp.Plan.from_dict(json.loads(capsys.readouterr().out)) == expected


def test_what_was_compared_is_printed_once(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ((), ("--explain",)):
        assert not orbitsplit(monkeypatch, *arguments, "--rows", "auto", *options)
        printed = capsys.readouterr().out
        assert printed.count("best plans by micro-batches x rows: 4 x 1 ") == 1
        assert printed.count("best plans by length of chunks: 16 tokens ") == 1


@pytest.mark.parametrize("rows", ["many", "0", "1.5"])
def test_other_rows_are_refused(
    arguments: list[str], rows: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orbitsplit(monkeypatch, *arguments, "--rows", rows) == 2
    assert f"--rows is '{rows}', expected a number of rows or auto" in capsys.readouterr().err


@pytest.mark.parametrize("guesses", ["none", "2", "auto"])
def test_guesses_are_those_of_the_option(
    arguments: list[str], guesses: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--acceptance", "0.9", "--draft-tokens", guesses)
    assert not orbitsplit(monkeypatch, *arguments, *options, "--json")
    workload = osp.Workload(micro_batches=4, prompt_tokens=PROMPT, new_tokens=6, acceptance=0.9)
    given = None if guesses == "none" else 2 if guesses == "2" else "auto"
    expected = osp.plan(CASE.profile, CASE.network, workload, draft_tokens=given)  # type: ignore[arg-type]
    assert osp.Plan.from_dict(json.loads(capsys.readouterr().out)) == expected
    assert (expected.draft_tokens is None) == (guesses == "none")


@pytest.mark.parametrize("option", ["--draft-tokens", "--chunk-tokens"])
def test_other_numbers_are_refused(
    arguments: list[str], option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orbitsplit(monkeypatch, *arguments, option, "few") == 2
    assert f"{option} is 'few', expected a number of " in capsys.readouterr().err


def test_the_front_over_latency_is_that_of_python(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, profile, _, network, *_ = arguments
    command = ("pareto", profile, "--over", "latency", "--sequences", "4", "--new-tokens", "6")
    workload = osp.Workload(micro_batches=4, prompt_tokens=PROMPT, new_tokens=6)
    expected = osp.pareto(CASE.profile, over="latency", network=CASE.network, workload=workload)
    assert not orbitsplit(monkeypatch, *command, "--network", network)
    assert capsys.readouterr().out == f"{expected}\n"
    assert not orbitsplit(monkeypatch, *command, "--network", network, "--json")
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected.to_dict()))
    assert orbitsplit(monkeypatch, *command) == 2
    assert "--over latency needs --network" in capsys.readouterr().err
    assert orbitsplit(monkeypatch, "pareto", profile, "--over", "memory", "--network", network) == 2
    assert "--network is for --over latency, not for --over memory" in capsys.readouterr().err


def test_a_rate_is_that_of_the_option(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = osp.Workload(micro_batches=4, prompt_tokens=PROMPT, new_tokens=6, arrivals_per_s=0.01)
    expected = osp.plan(CASE.profile, CASE.network, workload)
    assert not orbitsplit(monkeypatch, *arguments, "--arrivals-per-s", "0.01", "--json")
    assert osp.Plan.from_dict(json.loads(capsys.readouterr().out)) == expected
    for options in ((), ("--explain",)):
        assert not orbitsplit(monkeypatch, *arguments, "--arrivals-per-s", "0.01", *options)
        printed = capsys.readouterr().out
        assert printed.count(" are in flight, busiest is ") == 1
        assert " a request, first token after " in printed
    assert orbitsplit(monkeypatch, *arguments, "--arrivals-per-s", "1000") == 1
    assert "requests arrive at 1e+03 per second, the best plan found sustains " in capsys.readouterr().err
