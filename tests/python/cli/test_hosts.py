"""Commands over several hosts: run and serve, with agents on loopback or each in a network namespace of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import torch
from transformers import GenerationConfig

import orbitsplit as osp
from orbitsplit._cli import hosts as commands
from orbitsplit._cli import views
from orbitsplit.runtime import FleetStatus, Hosts, HostStatus, LinkRate
from orbitsplit.runtime._emulation.namespaces import Namespaces, why_unavailable
from orbitsplit.runtime._messages import tls_channel
from orbitsplit.runtime._messages.hosts import PROTOCOL
from orbitsplit.runtime._messages.tls_channel import create_credentials, host_and_port
from orbitsplit.runtime._parent import fleet_status
from tests.support.fake_engine import byte_tokenizer
from tests.support.fleet import CREDENTIALS, Fleet, fleet
from tests.support.ports import unused_port
from tests.support.tiny_models import LAYERS, load_unsplit, tiny_model

PROMPT = "The satellite"
NAMES = ("s0", "s1", "s2")
NEW_TOKENS = 2000
WAIT_S = 120.0
WHY_NOT = why_unavailable()
needs_namespaces = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@dataclass(frozen=True)
class Example:
    """A folder with a plan and what is needed to plan again, and the text of the whole model."""

    folder: Path
    text: str

    @property
    def options(self) -> list[str]:
        names = {"profile": "profile.json", "network": "network.toml", "credentials": CREDENTIALS}
        files = [word for name, file in names.items() for word in (f"--{name}", str(self.folder / file))]
        return [*files, "--no-rebalance"]  # plans change by losses alone here


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp("example")
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    whole = tiny_model(vocab_size=end + 1, pad_token_id=end, eos_token_id=None, max_position_embeddings=4096)
    whole.generation_config = GenerationConfig(pad_token_id=end, do_sample=False)
    whole.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        tokens = load_unsplit(folder / "model").generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS
        )
    nodes = tuple(osp.Node(name, 10**9, slowdown=1.0) for name in NAMES)
    links = tuple(osp.Link(a, b, 1e9, 1e-3) for a in NAMES for b in NAMES if a != b)
    osp.Network("three", nodes, links).save(folder / "network.toml")
    osp.profile(folder / "model", prompt_tokens=16, measure=True).save(folder / "profile.json")
    plan = osp.Plan.manual(cuts=[2], layers=LAYERS)
    stages = tuple(replace(stage, node=name) for stage, name in zip(plan.stages, NAMES, strict=False))
    workload = osp.Workload(prompt_tokens=16, new_tokens=NEW_TOKENS)
    replace(plan, stages=stages, workload=workload, model=str(folder / "model")).save(folder / "plan.json")
    create_credentials(folder / CREDENTIALS)
    return Example(folder, tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True))


def orbitsplit(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orbitsplit", *arguments]


def wait_for_session(process: subprocess.Popen[str], log: Path) -> None:
    """Wait until the stages of a coordinator, which logs to a file, are at work."""
    deadline_s = time.monotonic() + WAIT_S
    while "session 0 is ready" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.05)


@contextmanager
def coordinator(command: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as err:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_run_continues_when_a_host_is_lost(example: Example, tmp_path: Path) -> None:
    address = f"127.0.0.1:{unused_port()}"
    (tmp_path / CREDENTIALS).write_bytes((example.folder / CREDENTIALS).read_bytes())
    options = ["--prompt", PROMPT, "--coordinator", address, *example.options, "--json"]
    command = orbitsplit("-v", "run", str(example.folder / "plan.json"), *options)
    with fleet(tmp_path, address) as there:
        agents = [there.start(name, "--once") for name in NAMES]
        with coordinator(command, tmp_path / "log") as run:
            wait_for_session(run, tmp_path / "log")
            time.sleep(0.3)
            there.kill("s1")
            printed = json.loads(run.communicate(timeout=WAIT_S)[0])
        assert run.returncode == 0
        assert printed["texts"] == [example.text]
        (recovery,) = printed["recoveries"]
        assert (recovery["kind"], recovery["node"]) == ("killed", "s1")
        # With --once the others end when the run does.
        assert [agent.wait(WAIT_S) for agent in (agents[0], agents[2])] == [0, 0]
        assert "node s0 has joined" in there.log("s0")


def test_hosts_outlive_a_coordinator_that_is_killed_and_serve_the_next(example: Example, tmp_path: Path) -> None:
    address = f"127.0.0.1:{unused_port()}"
    (tmp_path / CREDENTIALS).write_bytes((example.folder / CREDENTIALS).read_bytes())
    options = ["--prompt", PROMPT, "--coordinator", address, *example.options, "--json"]
    command = orbitsplit("-v", "run", str(example.folder / "plan.json"), *options)
    with fleet(tmp_path, address) as there:
        for name in NAMES:
            there.start(name)
        with coordinator(command, tmp_path / "first") as run:
            wait_for_session(run, tmp_path / "first")
            assert there.workers("s0")
            run.kill()
        wait_until_idle(there)
        with coordinator(command, tmp_path / "second") as run:
            printed = json.loads(run.communicate(timeout=WAIT_S)[0])
        assert (printed["texts"], printed["recoveries"]) == ([example.text], [])


def wait_for_listener(address: str) -> None:
    """Wait until something listens at an address."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            socket.create_connection(host_and_port(address)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        else:
            return


def url_of(server: subprocess.Popen[str], log: Path) -> str:
    """Return where a server listens, once it does."""
    deadline_s = time.monotonic() + WAIT_S
    while "serving at" not in log.read_text():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.05)
    return next(line.split()[-1] for line in log.read_text().splitlines() if line.startswith("serving at"))


def test_serve_answers_while_a_host_is_lost(example: Example, tmp_path: Path) -> None:
    address = f"127.0.0.1:{unused_port()}"
    (tmp_path / CREDENTIALS).write_bytes((example.folder / CREDENTIALS).read_bytes())
    options = ["--port", "0", "--coordinator", address, *example.options]
    command = orbitsplit("-v", "serve", str(example.folder / "plan.json"), *options)
    log = tmp_path / "log"
    with fleet(tmp_path, address) as there, coordinator(command, log) as server:
        for name in NAMES:
            there.start(name)
        wait_for_session(server, log)
        url = url_of(server, log)
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=WAIT_S) as client:
            asked = {"model": "model", "prompt": PROMPT, "max_tokens": 1500, "temperature": 0}
            got = []
            for chunk in client.completions.create(stream=True, **asked):
                got.append(chunk.choices[0].text)
                if len(got) == 50:
                    there.kill("s1")
            assert "".join(got) == example.text[: len("".join(got))]
            assert client.completions.create(**asked).choices[0].text == "".join(got)
        assert "recovered from 1 losses" in log.read_text()
        server.terminate()
        server.communicate(timeout=WAIT_S)
        assert server.returncode == 0


def test_another_coordinator_takes_over_and_resumes_what_clients_send_again(example: Example, tmp_path: Path) -> None:
    addresses = [f"127.0.0.1:{unused_port()}" for _ in range(2)]
    (tmp_path / CREDENTIALS).write_bytes((example.folder / CREDENTIALS).read_bytes())
    logs = [tmp_path / "first", tmp_path / "second"]
    asked = {"model": "model", "prompt": PROMPT, "max_tokens": 1500, "temperature": 0}

    def server(number: int) -> AbstractContextManager[subprocess.Popen[str]]:
        options = ["--failover", "--port", "0", "--coordinator", addresses[number], *example.options]
        return coordinator(orbitsplit("-v", "serve", str(example.folder / "plan.json"), *options), logs[number])

    with fleet(tmp_path, ",".join(addresses)) as there, server(0) as first, server(1) as second:
        for address in addresses:
            wait_for_listener(address)
        for name in NAMES:
            there.start(name)
        got = []
        url = url_of(first, logs[0])
        lost = suppress(openai.APIError, httpx.HTTPError)
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=WAIT_S) as client, lost:
            for chunk in client.completions.create(stream=True, **asked):
                got.append(chunk.choices[0].text)
                if len("".join(got)) >= 300:
                    first.kill()
        url = url_of(second, logs[1])
        with openai.OpenAI(base_url=url, api_key="none", timeout=WAIT_S) as client:
            text = client.completions.create(**asked).choices[0].text
        assert text.startswith("".join(got))
        assert example.text.startswith(text)
        assert len(text) > len("".join(got))
        log = logs[1].read_text()
        found = re.search(r"a request of the last coordinator is resumed with (\d+) tokens", log)
        assert found, log
        assert int(found[1]) > 100
        second.terminate()
        second.communicate(timeout=WAIT_S)
        assert second.returncode == 0


def test_failover_needs_what_it_plans_with(example: Example) -> None:
    command = orbitsplit("serve", str(example.folder / "plan.json"), "--failover", *example.options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 2
    assert "--failover needs --coordinator, and --profile and --network to plan with the hosts left" in done.stderr


@needs_namespaces
def test_a_partition_goes_on_where_the_coordinator_is_and_nowhere_else(example: Example, tmp_path: Path) -> None:
    (tmp_path / CREDENTIALS).write_bytes((example.folder / CREDENTIALS).read_bytes())
    nodes = tuple(osp.Node(name, 1, slowdown=1.0) for name in ("ground", *NAMES))
    with Namespaces(osp.Network("hosts", nodes)) as spaces:
        address = f"{spaces.address('ground')}:29400"
        options = ["--prompt", PROMPT, "--coordinator", address, *example.options, "--json"]
        command = orbitsplit("-v", "run", str(example.folder / "plan.json"), *options)

        def set_link(name: str, state: str) -> None:
            subprocess.run(["ip", "-n", spaces.namespace(name), "link", "set", "eth0", state], check=True)

        with fleet(tmp_path, address, command=spaces.command) as there:
            for name in NAMES:
                there.start(name)
            with coordinator(spaces.command("ground", command), tmp_path / "log") as run:
                wait_for_session(run, tmp_path / "log")
                time.sleep(0.3)
                set_link("s1", "down")
                printed = json.loads(run.communicate(timeout=WAIT_S)[0])
            assert printed["texts"] == [example.text]
            assert printed["recoveries"][0]["kind"] in ("hangs", "link")
            assert "s1" not in printed["recoveries"][0]["after"]
            # The host that was cut off has ended its process by itself.
            wait_until_idle(there)
            assert "node s1 has not heard of the coordinator for 8 s" in there.log("s1")
            set_link("s1", "up")


def wait_until_idle(there: Fleet) -> None:
    """Wait until no host has a process of a stage."""
    deadline_s = time.monotonic() + WAIT_S
    while any(there.workers(name) for name in NAMES):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_a_node_takes_its_name_from_the_rank_of_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RANK", "SLURM_PROCID", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(variable, raising=False)
    assert commands.name_of("sat-1") == "sat-1"
    with pytest.raises(ValueError, match=r"--name is 'sat-\{rank\}', and no launcher has set a rank: none of RANK"):
        commands.name_of("sat-{rank}")
    monkeypatch.setenv("SLURM_PROCID", "2")
    assert commands.name_of("sat-{rank}") == "sat-2"
    monkeypatch.setenv("RANK", "3")
    assert commands.name_of("sat-{rank}") == "sat-3"
    assert commands.name_of(None) == os.uname().nodename


def test_a_node_that_torchrun_starts_ends_with_it(example: Example, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "orbitsplit"]
    where = ["--coordinator", f"127.0.0.1:{unused_port()}", "--credentials", str(example.folder / CREDENTIALS)]
    log = tmp_path / "log"
    with log.open("w") as err, psutil.Popen([*launch, "node", *where, "--name", "s{rank}"], stderr=err) as started:
        try:
            deadline_s = time.monotonic() + WAIT_S
            while "node s0 does not reach the coordinator" not in log.read_text():
                assert started.poll() is None, log.read_text()
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            processes = started.children(recursive=True)
            started.terminate()
            started.wait(WAIT_S)
        finally:
            with suppress(psutil.NoSuchProcess):
                started.kill()
    assert psutil.wait_procs(processes, timeout=60)[1] == []


def test_a_coordinator_needs_credentials(example: Example) -> None:
    command = orbitsplit("run", str(example.folder / "plan.json"), "--prompt", "x", "--coordinator", "127.0.0.1:0")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: --coordinator needs --credentials" in done.stderr


def test_a_node_with_other_credentials_ends_with_an_error(example: Example, tmp_path: Path) -> None:
    create_credentials(tmp_path / CREDENTIALS)
    with Hosts(credentials=example.folder / CREDENTIALS) as hosts:
        where = ["--coordinator", hosts.address, "--credentials", str(tmp_path / CREDENTIALS)]
        done = subprocess.run(orbitsplit("node", *where), capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the other end has other credentials")


def test_nodes_lists_who_is_there(example: Example) -> None:
    credentials = example.folder / CREDENTIALS
    with Hosts(credentials=credentials, silence_s=WAIT_S) as hosts:
        channel = tls_channel.TlsChannel.connect(hosts.address, tls_channel.Credentials(credentials))
        channel.send({"join": "sat-7", "protocol": PROTOCOL, "clock": "", "cores": 3, "memory_bytes": 4_000_000_000})
        hosts.wait_for(["sat-7"], WAIT_S)
        command = orbitsplit("nodes", "--coordinator", hosts.address, "--credentials", str(credentials))
        wide = {**os.environ, "COLUMNS": "200"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_S, env=wide)
        row = next(line for line in done.stdout.splitlines() if "sat-7" in line)
        assert [cell.strip() for cell in row.split("│")][1:5] == ["sat-7", "127.0.0.1", "3", "4 GB"]
        assert "no plan runs" in row
        printed = subprocess.run(
            [*command, "--json"], capture_output=True, text=True, check=True, timeout=WAIT_S
        ).stdout
        assert FleetStatus.from_dict(json.loads(printed)) == hosts.status()
        assert json.loads(printed)["hosts"][0]["cores"] == 3
        channel.release()


def test_nodes_of_a_coordinator_of_another_version(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = example.folder / CREDENTIALS
    monkeypatch.setattr(fleet_status, "PROTOCOL", 0)
    with (
        Hosts(credentials=credentials) as hosts,
        pytest.raises(osp.TransportError, match=rf"lists no nodes: it speaks protocol 0, this coordinator {PROTOCOL}"),
    ):
        FleetStatus.of(hosts.address, credentials=credentials)


def test_links_are_shown_as_planned_and_measured(capsys: pytest.CaptureFixture[str]) -> None:
    host = HostStatus(
        node="a[b]", address="10.0.0.1", cores=2, memory_bytes=0, start=1, stop=4, resident_bytes=5_000_000
    )
    link = LinkRate(
        source="a[b]", destination="c", planned_bytes_per_s=2e6, measured_bytes_per_s=1e6, planned_latency_s=0.5
    )
    views.fleet(views.open_console(), FleetStatus((host,), (link,)))
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("a[b]", "1-3", "5 MB", "a[b] -> c", "2 MB/s", "1 MB/s", "500 ms"))
