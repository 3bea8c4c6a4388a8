"""The command line: what it prints, its exit codes, and that bad input is one clear line."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch
from rich.console import Console
from transformers import GenerationConfig, PreTrainedModel

import orbitsplit as osp
from orbitsplit.__main__ import main
from orbitsplit._cli import running, serving, views
from tests.support.fake_engine import byte_tokenizer
from tests.support.paths import DATA
from tests.support.small_inputs import LINKS, PROBLEM
from tests.support.tiny_models import (
    LAYERS,
    computing_in_groups,
    load_unsplit,
    save_tiny_model,
    save_tiny_tokenizer,
    tiny_model,
)


def orbitsplit(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["orbitsplit", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        main()
    code = exit_info.value.code
    return code if isinstance(code, int) else 0 if code is None else 1


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(PROBLEM))
    return path


def test_solve_prints_one_object(
    problem: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orbitsplit(monkeypatch, "solve", problem, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("seconds") >= 0
    assert printed == {
        "status": "optimal",
        "objective_s": 5.5,
        "lower_bound_s": 5.5,
        "gap": 0.0,
        "loss": 0.1,
        "stages": [
            {"node": 0, "start": 0, "stop": 2, "level": 1},
            {"node": 1, "start": 2, "stop": 3, "level": None},
        ],
        "reason": None,
    }


def test_solve_names_the_weight_level_of_each_stage(
    problem: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {
        "weight_levels": [{"name": "float32"}, {"name": "int8"}],
        "layer_memory_bytes": [[2, 1, 1], [1, 1, 1]],
        "layer_time_s": [[[1, 1, 1], [2, 2, 2]], [[1, 1, 1], [3, 3, 3]]],
        "weight_loss": [[0, 0, 0], [0, 0, 0]],
    }
    problem.write_text(json.dumps({**PROBLEM, **weights}))
    assert orbitsplit(monkeypatch, "solve", problem, "--json") == 0
    assert json.loads(capsys.readouterr().out)["stages"] == [
        {"node": 0, "start": 0, "stop": 2, "level": 1, "weight_level": 1},
        {"node": 1, "start": 2, "stop": 3, "level": None, "weight_level": 0},
    ]
    assert orbitsplit(monkeypatch, "solve", problem) == 0
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert rows == [["0", "n0", "0-1", "int8", "int8"], ["1", "n1", "2-2", "float32"]]


def test_solve_says_infeasible_with_exit_code_0(
    problem: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem.write_text(json.dumps({**PROBLEM, "layer_memory_bytes": [1, 3, 1]}))
    assert orbitsplit(monkeypatch, "solve", problem, "--json", "--time-limit", 5) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["status"] == "infeasible"
    assert printed["stages"] == []
    assert printed["objective_s"] is None
    assert "3 B" in printed["reason"]


def test_solve_prints_text(problem: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert orbitsplit(monkeypatch, "solve", problem) == 0
    out = capsys.readouterr().out
    assert "optimal: 5.5 s" in out
    assert "int8" in out


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        (json.dumps({**PROBLEM, "colour": 1}), "colour"),
        (json.dumps({k: v for k, v in PROBLEM.items() if k != "levels"}), "levels"),
        (json.dumps({**PROBLEM, "cut_bytes": [4]}), "cut_bytes"),
        (json.dumps({**PROBLEM, "cut_bytes": [4, float("nan")]}), "cut_bytes"),
        (json.dumps({**PROBLEM, "layer_time_s": [[1, 1, -1], [2, 2, 2]]}), "layer_time_s"),
        (json.dumps({**PROBLEM, "order": "random"}), "order"),
        (json.dumps({**PROBLEM, "micro_batches": 0}), "micro_batches"),
    ],
)
def test_invalid_problems_exit_with_2_and_name_the_key(
    content: str, named: str, problem: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem.write_text(content)
    assert orbitsplit(monkeypatch, "solve", problem, "--json") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert named in captured.err


def test_a_missing_file_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orbitsplit(monkeypatch, "solve", tmp_path / "none.json") == 2
    assert "none.json" in capsys.readouterr().err


COMMANDS = (
    "calibrate",
    "convert",
    "demo",
    "explain",
    "leo",
    "pareto",
    "plan",
    "problem",
    "profile",
    "run",
    "serve",
    "simulate",
    "solve",
    "verify",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert orbitsplit(monkeypatch, command, "--help") == 0
    out = capsys.readouterr().out
    assert f"orbitsplit {command} " in out
    assert "Example" in out
    # A server has no result.
    assert ("--json" in out) == (command != "serve")


def test_profile_plan_and_simulate_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    save_tiny_model(model)
    profile, network, plan = tmp_path / "profile.json", tmp_path / "network.toml", tmp_path / "plan.json"
    network.write_text(
        '[[nodes]]\nname = "a"\nmemory = "1 GB"\ncompute = "1 GFLOP/s"\n'
        '[[nodes]]\nname = "b"\nmemory = "1 GB"\ncompute = "2 GFLOP/s"\n'
        '[[links]]\nbetween = ["a", "b"]\nbandwidth = "10 Mbit/s"\nlatency = "5 ms"\n'
    )
    assert orbitsplit(monkeypatch, "profile", model, "--prompt-tokens", 16, "-o", profile, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(profile.read_text())
    arguments = ("plan", profile, "--network", network, "--micro-batches", 4, "--new-tokens", 3, "-o", plan)
    assert orbitsplit(monkeypatch, *arguments) == 0
    assert "optimal" in capsys.readouterr().out
    loaded = osp.Plan.load(plan)
    assert loaded.prediction is not None
    assert orbitsplit(monkeypatch, "simulate", plan, "-o", tmp_path / "timeline.png") == 0
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    assert orbitsplit(monkeypatch, "simulate", plan, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["nodes"] == [s.node for s in loaded.stages]
    # The last layers would be on the same node: it is the faster one.
    pins = ("--pin", "a=head, 2", "--pin", "b=", "--json")
    assert orbitsplit(monkeypatch, *arguments[:-2], *pins) == 0
    first, last = json.loads(capsys.readouterr().out)["stages"]
    assert (first["node"], last["node"]) == ("b", "a")
    assert last["start"] <= 2
    for wrong, message in (("head", "--pin is 'head', expected NODE=LAYER,LAYER"), ("c=head", "pins name node 'c'")):
        assert orbitsplit(monkeypatch, *arguments[:-2], "--pin", wrong) == 2
        assert message in capsys.readouterr().err


def test_a_problem_is_written_and_a_saved_plan_explained(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing on the command line did either.
    common = ("profile.json", "--network", "network.toml", "--micro-batches", 8, "--new-tokens", 8)
    lossy = (*common, "--codebook", "book.safetensors", "--max-accuracy-drop", 0.01)
    for options in (common, lossy):
        assert orbitsplit(monkeypatch, "problem", *options, "-o", "made.json") == 0
        assert (
            f"made.json: {LAYERS + 2} layers, 2 nodes, {2 if options == lossy else 1} levels" in capsys.readouterr().out
        )
        assert orbitsplit(monkeypatch, "solve", "made.json", "--json") == 0
        solved = json.loads(capsys.readouterr().out)
        limits = ("--chunk-tokens", "none", "--draft-tokens", "none", "--explain", "-o", "made-plan.json")
        assert orbitsplit(monkeypatch, "plan", *options, *limits) == 0
        shown = capsys.readouterr().out
        made = osp.Plan.load("made-plan.json")
        assert made.prediction is not None
        assert solved["objective_s"] == pytest.approx(made.prediction.total_s)
        assert orbitsplit(monkeypatch, "explain", "made-plan.json", *(lossy[-4:-2] if options == lossy else ())) == 0
        assert capsys.readouterr().out == shown
    assert orbitsplit(monkeypatch, "explain", "plan.json", "--codebook", "book.safetensors") == 2
    assert "the plan has codebook None, book.safetensors is codebook " in capsys.readouterr().err
    assert orbitsplit(monkeypatch, "problem", *common, "--max-accuracy-drop", 0.01, "-o", "made.json") == 2
    assert "max_accuracy_drop needs a codebook" in capsys.readouterr().err


def test_a_plan_that_does_not_exist_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    save_tiny_model(model)
    profile, network = tmp_path / "profile.json", tmp_path / "network.toml"
    network.write_text('[[nodes]]\nname = "a"\nmemory = "1 kB"\ncompute = "1 GFLOP/s"\n')
    assert orbitsplit(monkeypatch, "profile", model, "--prompt-tokens", 16, "-o", profile) == 0
    capsys.readouterr()
    assert orbitsplit(monkeypatch, "plan", profile, "--network", network) == 1
    assert "needs" in capsys.readouterr().err


BRACKETS = """
[[nodes]]
name = "sat[0]"          # brackets are markup to rich, and were once eaten
memory = "1 GB"
slowdown = 1.0

[[nodes]]
name = "sat[/1]"
memory = "1 GB"
slowdown = 1.5

[[links]]
between = ["sat[0]", "sat[/1]"]
bandwidth = "10 Mbit/s"
latency = "1 ms"
"""


def test_calibrate_plan_verify_and_run_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    save_tiny_model(model)
    save_tiny_tokenizer(model)
    text, network = tmp_path / "text.txt", tmp_path / "network.toml"
    text.write_text("the satellite passes over the station and sends data " * 20)
    network.write_text(BRACKETS)
    profile, plan, trace = (tmp_path / f"{name}.json" for name in ("profile", "plan", "trace"))
    book, verified = tmp_path / "book.safetensors", tmp_path / "verified.json"
    common = ("--prompt-tokens", 16)
    assert orbitsplit(monkeypatch, "profile", model, *common, "--measure", "-o", profile) == 0
    options = ("--codec", "klt", "--codec", "int8", "--level", 4, "--cut", 1, "--cut", 2, "--weights", "int4")
    assert orbitsplit(monkeypatch, "calibrate", model, *common, "--text", text, *options, "-o", book) == 0
    shown = capsys.readouterr().out
    assert "klt 4" in shown
    assert "worst layer" in shown
    assert len(osp.Codebook.load(book).weights["int4"].loss) == 6
    assert not book.with_name("book.safetensors.partial").exists()
    given = ("--codebook", book)
    budget = (*given, "--max-accuracy-drop", 0.5, "--new-tokens", 4)
    assert orbitsplit(monkeypatch, "plan", profile, "--network", network, *budget, "-o", plan) == 0
    assert "sat[0]" in capsys.readouterr().out
    assert orbitsplit(monkeypatch, "verify", plan, "--text", text, *given, "-o", verified, "--json") == 0
    assert json.loads(capsys.readouterr().out)["is_within"]
    assert osp.Plan.load(verified).max_accuracy_drop == 0.5
    prompts = ("--prompt", "the satellite", "--prompt", "over the station passes")
    assert orbitsplit(monkeypatch, "run", verified, *prompts, *given, "--new-tokens", 4, "-o", trace, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["texts"]) == 2
    assert printed["run"]["new_tokens"] == 4
    assert osp.Trace.load(trace).events


def test_convert_takes_formats_of_modules_and_calibration_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text = tmp_path / "model", tmp_path / "text.txt"
    save_tiny_model(model)
    save_tiny_tokenizer(model)
    text.write_text("the satellite passes over the station and sends data " * 150)
    given = ("convert", model, "--weights", "int4", "--module", "*.v_proj=int8", "--json")
    sizes = []
    calibration = ("--calibration", text, "--int8-rows")
    runs = {"rounded": (), "compensated": (*calibration, "0"), "refined": (*calibration, "2")}
    for name, options in runs.items():
        assert orbitsplit(monkeypatch, *given, *options, "-o", tmp_path / name) == 0
        sizes.append(json.loads(capsys.readouterr().out)["weight_bytes"])
    config = json.loads((tmp_path / "compensated" / "config.json").read_text())
    assert config["quantization_config"]["formats"]["int8"] == [f"model.layers.{k}.self_attn.v_proj" for k in range(4)]
    files = [sorted((tmp_path / name).glob("*.safetensors"))[1].read_bytes() for name in ("rounded", "compensated")]
    assert sizes[0] == sizes[1] < sizes[2]
    assert json.loads((tmp_path / "refined" / "config.json").read_text())["quantization_config"]["int8_rows"]
    assert files[0] != files[1]
    assert orbitsplit(monkeypatch, "convert", model, "--module", "int8", "-o", tmp_path / "out") == 2
    assert "'int8' is no PATTERN=FORMAT" in capsys.readouterr().err


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    osp.Plan.manual(cuts=[2], layers=4).save(tmp_path / "plan.json")
    output = tmp_path / "timeline.tiff"
    assert orbitsplit(monkeypatch, "run", tmp_path / "plan.json", "--prompt", "x", "-o", output) == 2
    assert "'.tiff'" in capsys.readouterr().err


def test_a_run_of_another_workload_is_compared_as_far_as_the_plan_goes(capsys: pytest.CaptureFixture[str]) -> None:
    # 32 tokens were once compared with a prediction for 8, as 4.5 times the prediction; then with nothing.
    prediction = osp.Prediction(
        total_s=15, prefill_s=9, token_step_s=6, loss=0, stage_s=(2, 1), link_s=(0,), decode_stage_s=(0.5, 1),
        decode_link_s=(0,), stage_memory_bytes=(1, 1), status="optimal", lower_bound_s=15, gap=0,
    )  # fmt: skip
    workload = osp.Workload(micro_batches=4, prompt_tokens=3, new_tokens=2)
    stages = (osp.PlanStage("a", 0, 2), osp.PlanStage("b", 2, 3))
    plan = osp.Plan(stages, (osp.PlanLink(),), 3, workload=workload, prediction=prediction)

    def run(groups: int, prompt_tokens: int, new_tokens: int, *, rows: int = 1) -> osp.Run:
        return osp.Run(
            sequences=groups * rows, prompt_tokens=prompt_tokens, new_tokens=new_tokens, groups=groups, prefill_s=5,
            decode_s=31, stages=(), links=(), trace=osp.Trace(nodes=("a", "b"), events=()),
        )  # fmt: skip

    as_planned = {"prefill_s": (9, 5), "decode_s": (6, 31), "total_s": (15, 36)}
    assert run(4, 3, 2).against(plan) == as_planned
    # One prompt: 2 s and 1 s, then laps of 0.5 s and 1 s.
    assert run(1, 3, 3).against(plan) == {"prefill_s": (3, 5), "decode_s": (3, 31), "total_s": (6, 36)}
    assert run(1, 7, 32).against(plan) == {"token_step_s": (1.5, 1)}
    assert run(1, 7, 1).against(plan) is None
    assert run(1, 3, 2, rows=2).against(plan) is None
    without_steps = replace(plan, prediction=replace(prediction, decode_stage_s=(), decode_link_s=()))
    assert run(1, 3, 2).against(without_steps) == {"prefill_s": (3, 5)}
    for measured, shown in (
        (run(4, 3, 2), "0.556"),
        (run(1, 7, 32), "36 s for 1 x 7 + 32 tokens; predicted by the stage times of the plan, which is for 4 x 3 + 2"),
        (run(1, 7, 1), "36 s for 1 x 7 + 1 tokens; not compared with the prediction, which is for 4 x 3 + 2"),
    ):
        views.prediction(Console(width=200), plan, measured)
        assert shown in capsys.readouterr().out


# Runs and servers of a plan with two nodes, on a tiny model that reads and writes bytes.

CHAIN = """
[[nodes]]
name = "a"
memory = "1 GB"
slowdown = 1.0

[[nodes]]
name = "b"
memory = "1 GB"
slowdown = 1.0

[[links]]
between = ["a", "b"]
bandwidth = "100 Mbit/s"
"""


@dataclass(frozen=True)
class Chain:
    """Files of a chain of two nodes, and the whole model with its tokenizer."""

    folder: Path
    whole: PreTrainedModel
    tokenizer: Any

    def continued(self, prompt: str, new_tokens: int, **options: Any) -> str:
        """Return what the whole model says after a prompt."""
        inputs = self.tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode(), computing_in_groups(self.whole, 1):
            tokens = self.whole.generate(**inputs, max_new_tokens=new_tokens, **options)
        return str(self.tokenizer.decode(tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    whole = tiny_model(vocab_size=end + 1, pad_token_id=end, eos_token_id=end)
    whole.generation_config = GenerationConfig(pad_token_id=end, eos_token_id=end)
    whole.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    whole = load_unsplit(folder / "model")
    (folder / "network.toml").write_text(CHAIN)
    (folder / "links.toml").write_text(LINKS)
    osp.profile(folder / "model", prompt_tokens=16, measure=True).save(folder / "profile.json")
    plan = osp.Plan.manual(cuts=[2], layers=LAYERS)
    stages = tuple(replace(stage, node=node, memory_bytes=10**9) for stage, node in zip(plan.stages, "ab", strict=True))
    workload = osp.Workload(prompt_tokens=16, new_tokens=8)
    replace(plan, stages=stages, workload=workload, model=str(folder / "model")).save(folder / "plan.json")
    return Chain(folder, whole, tokenizer)


def test_options_of_a_generation_are_refused_before_processes_start(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(chain.folder)
    monkeypatch.setattr(osp.Pipeline, "__init__", lambda *_args, **_options: pytest.fail("a pipeline starts"))
    drawn = ("--sample", "--temperature", -1)
    assert orbitsplit(monkeypatch, "run", "plan.json", "--prompt", "The satellite", *drawn) == 2
    assert capsys.readouterr().err.endswith("error: temperature is -1.0, must be above 0\n")


def test_a_port_that_is_in_use_is_refused_before_processes_start(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(chain.folder)
    monkeypatch.setattr(osp.Pipeline, "__init__", lambda *_args, **_options: pytest.fail("a pipeline starts"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert orbitsplit(monkeypatch, "serve", "plan.json", "--port", port) == 2
    message = f"error: port {port} of 127.0.0.1 is in use: choose another one, or 0 for a free one\n"
    assert capsys.readouterr().err.endswith(message)


def test_a_run_draws_tokens_over_links_that_change_and_writes_a_trace_for_viewers(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ("--sample", "--temperature", 0.8, "--top-p", 0.9, "--seed", 3)
    penalties = ("--repetition-penalty", 5.0, "--no-repeat-ngram-size", 2, "--min-p", 0.001, "--top-k", 4)
    after_a_loss = ("--profile", "profile.json", "--network", "network.toml")
    trace = tmp_path / "run.chrome.json"
    ends = ("--min-new-tokens", 9, "--stop", "@@@@")
    rest = ("--links", "links.toml", "--new-tokens", 10, "-o", trace, "--json")
    options = (*drawn, *penalties, *ends, *after_a_loss, *rest)
    monkeypatch.chdir(chain.folder)
    assert orbitsplit(monkeypatch, "run", "plan.json", "--prompt", "The satellite", *options) == 0
    printed = json.loads(capsys.readouterr().out)
    torch.manual_seed(3)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "min_p": 0.001, "top_k": 4}
    limits: dict[str, Any] = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 2, "min_new_tokens": 9}
    assert printed["texts"] == [chain.continued("The satellite", 10, **sampling, **limits)]
    torch.manual_seed(3)
    assert printed["texts"] != [chain.continued("The satellite", 10, **sampling)]
    assert printed["recoveries"] == []
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} >= {"a", "b"}
    (link,) = printed["run"]["links"]
    assert (link["source"], link["destination"], link["frames"]) == ("a", "b", 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--profile", "profile.json"), "to resume after a loss, give --profile and --network"),
        (("--network", "network.toml"), "to resume after a loss, give --profile and --network"),
        (("--links", "other.toml"), "the conditions name node 'mars'; the nodes are a, b"),
        (("--assistant-tokens", "4"), "--assistant-tokens needs --assistant-model"),
        (("--assistant-model", "./missing"), "no model at ./missing: the path does not exist"),
        (
            ("--assistant-model", "model", "--prompt-lookup", "4"),
            "--prompt-lookup and --assistant-model exclude each other: give one of them",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: tuple[str, ...],
    message: str,
    chain: Chain,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(chain.folder)
    Path("other.toml").write_text(LINKS.replace('"b"', '"mars"'))
    assert orbitsplit(monkeypatch, "run", "plan.json", "--prompt", "x", *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_the_text_of_one_prompt_is_printed_as_it_appears(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # It appeared at the end of the run.
    printed: list[str] = []
    show = running.out.print
    monkeypatch.setattr(running.out, "print", lambda *what, **how: (printed.append(str(what[0])), show(*what, **how)))
    monkeypatch.chdir(chain.folder)
    assert orbitsplit(monkeypatch, "run", "plan.json", "--prompt", "The satellite", "--new-tokens", 20) == 0
    text = chain.continued("The satellite", 20)
    assert f"...'The satellite' -> {text}\n" in capsys.readouterr().out
    assert text not in printed
    assert "".join(printed[1:]).startswith(text)
    assert orbitsplit(monkeypatch, "run", "plan.json", "--prompt", "The", "--prompt", "sat", "--new-tokens", 20) == 0
    assert f"...'The' -> {chain.continued('The', 20)!r}\n" in capsys.readouterr().out


def test_a_run_with_an_assistant_says_what_the_model_says(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(chain.folder)
    options = ("--new-tokens", 20, "--assistant-model", "model", "--assistant-tokens", 3, "--json")
    assert orbitsplit(monkeypatch, "run", "plan.json", "--prompt", "The satellite", *options) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["texts"] == [chain.continued("The satellite", 20)]
    # A whole model is beside the layers of the first stage.
    first, second = (stage["weight_bytes"] for stage in printed["run"]["stages"])
    assert first > 2 * second


def test_a_server_starts_its_pipeline_with_the_assistant(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def opened(_inputs: Any, _progress: Any, **options: Any) -> Any:
        asked.update(options)
        raise ValueError("enough is known")

    monkeypatch.chdir(chain.folder)
    monkeypatch.setattr(serving, "open_pipeline", opened)
    assert orbitsplit(monkeypatch, "serve", "plan.json", "--assistant-model", "model") == 2
    assert asked["assistant_model"] == "model"


def test_what_one_machine_emulates_or_recovers_is_refused_under_torchrun(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # It was ignored.
    monkeypatch.chdir(chain.folder)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "0")
    after_a_loss = ("--profile", "profile.json", "--network", "network.toml")
    for options in (("--links", "links.toml"), after_a_loss):
        assert orbitsplit(monkeypatch, "run", "plan.json", "--prompt", "x", *options) == 2
        assert "are for runs that torchrun has not started" in capsys.readouterr().err


def test_another_number_of_ranks_than_stages_is_refused_at_once(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # It was found after the imports of torch and transformers, on every machine.
    monkeypatch.chdir(chain.folder)
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("RANK", "0"), ("WORLD_SIZE", "5")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(running, "open_pipeline", None)
    assert orbitsplit(monkeypatch, "run", "plan.json", "--prompt", "x") == 2
    stages = len(osp.Plan.load("plan.json").stages)
    assert f"torchrun started 5 processes, the plan has {stages} stages" in capsys.readouterr().err


def test_serve_ends_when_its_pipeline_cannot_go_on(chain: Chain) -> None:
    # It answered 503 for ever.
    command = [sys.executable, "-m", "orbitsplit", "serve", "plan.json", "--port", "0"]
    with subprocess.Popen(command, cwd=chain.folder, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            lines = iter(server.stderr.readline, "")
            assert any(line.startswith("serving at") for line in lines)
            stage = max(psutil.Process(server.pid).children(recursive=True), key=lambda one: one.pid)
            stage.kill()
            _, output = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 1
    assert "error: the server has ended with its pipeline: node " in output
    assert "was killed by signal 9" in output


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "option"), [(signal.SIGINT, "--quiet"), (signal.SIGTERM, "-v")])
def test_serve_answers_openai_clients_logs_and_ends_in_order(number: signal.Signals, option: str, chain: Chain) -> None:
    given = ["--port", "0", "--api-key", "open sesame", "--context", "40"]
    command = [sys.executable, "-m", "orbitsplit", option, "serve", "plan.json", *given]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=chain.folder, stderr=subprocess.PIPE, text=True, env=env) as server:
        try:
            assert server.stderr is not None
            lines = [server.stderr.readline()]
            while not lines[-1].startswith("serving at"):
                lines.append(server.stderr.readline())
                assert lines[-1]
            url = lines[-1].split()[-1]
            assert url.startswith("http://127.0.0.1:")
            children = psutil.Process(server.pid).children(recursive=True)
            with openai.OpenAI(base_url=url, api_key="open sesame", max_retries=0, timeout=60) as client:
                answer = client.completions.create(model="model", prompt="The satellite", max_tokens=10, temperature=0)
            with (
                openai.OpenAI(base_url=url, api_key="guessed", max_retries=0, timeout=60) as stranger,
                pytest.raises(openai.AuthenticationError),
            ):
                stranger.completions.create(model="model", prompt="x", max_tokens=1)
            server.send_signal(number)
            log = "".join(lines) + server.communicate(timeout=60)[1]
        finally:
            server.kill()
    assert answer.choices[0].text == chain.continued("The satellite", 10, do_sample=False)
    assert server.returncode == 0
    assert len(children) == 3  # two stages and the fork server
    assert psutil.wait_procs(children, timeout=60)[1] == []
    logged = (
        "INFO orbitsplit.serve: started: model model, 40 tokens per request",
        "WARNING orbitsplit.serve: requests may have 40 tokens, the plan reserves",  # 16 + 8
        "INFO orbitsplit.serve: stopped",
    )
    assert [line in log for line in logged] == [option == "-v"] * 3


@pytest.mark.timeout(300)
def test_serve_with_a_key_file_a_certificate_and_its_log_as_json(chain: Chain, tmp_path: Path) -> None:
    certificate, key, key_file = DATA / "tls/certificate.pem", DATA / "tls/key.pem", tmp_path / "key"
    key_file.write_text("open sesame\n")
    given = ["--port", "0", "--api-key-file", str(key_file), "--log-format", "json"]
    given += ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
    command = [sys.executable, "-m", "orbitsplit", "serve", "plan.json", *given]
    with subprocess.Popen(command, cwd=chain.folder, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            lines = iter(server.stderr.readline, "")
            message = next(line for line in lines if "listening at" in line)
            url = json.loads(message)["message"].split()[-1]
            assert url.startswith("https://127.0.0.1:")
            context = ssl.create_default_context(cafile=str(certificate))
            with httpx.Client(base_url=url, verify=context, timeout=60) as client:
                assert client.get("/ready").status_code == 200
                assert client.get("/metrics").status_code == 401
                metrics = client.get("/metrics", headers={"authorization": "Bearer open sesame"}).text
            assert 'orbitsplit_node_memory_bytes{node="' in metrics
            server.send_signal(signal.SIGTERM)
            rest = server.communicate(timeout=60)[1]
        finally:
            server.kill()
    assert server.returncode == 0
    assert json.loads(rest.splitlines()[-1]).keys() >= {"time", "level", "logger", "message"}
    assert "sesame" not in rest


def test_a_key_is_given_once_and_is_not_empty(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(chain.folder)
    file = tmp_path / "key"
    file.write_text(" \n")
    assert orbitsplit(monkeypatch, "serve", "plan.json", "--api-key-file", str(file)) == 2
    assert "is empty, expected the key" in capsys.readouterr().err.replace("\n", " ")
    assert orbitsplit(monkeypatch, "serve", "plan.json", "--api-key-file", str(file), "--api-key", "x") == 2
    assert "one of them" in capsys.readouterr().err.replace("\n", " ")
