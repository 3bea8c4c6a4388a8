"""One plan file on several machines: the text of the whole model, clear errors, and no process that stays.

Machines are torchrun's ranks on this one, or network namespaces that see each other over links of limited rate only.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

import orbitsplit as osp
from orbitsplit._models.architecture import find_layers
from orbitsplit._models.fingerprint import hash_layers
from orbitsplit.runtime._emulation.namespaces import Namespaces, why_unavailable
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._parent import supervisor
from orbitsplit.runtime._parent.launcher import LocalLauncher
from tests.support.books_by_hand import book_by_hand
from tests.support.fake_engine import byte_tokenizer
from tests.support.tiny_models import HIDDEN, LAYERS, computing_in_groups, load_unsplit, tiny_model
from tests.support.torchrun_machines import Machine, Machines, listening, running, sent_bytes, torchrun

pytestmark = pytest.mark.timeout(600)  # a run imports torch in six processes

PROMPTS = ("The satellite", "passes over the station")
NODES = ("sat-0", "sat-1", "ground")
CUTS = (1, 3)
NEW_TOKENS = 12
CONTEXT = 100_000
HEARTBEAT_S = 8.0  # Pipeline's

WHY_NOT = why_unavailable()
needs_namespaces = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@dataclass(frozen=True)
class Example:
    """A plan for three nodes and what the whole model says, one for two; the first compressed, and what it says."""

    plan: Path
    pair: Path
    texts: list[str]
    compressed: Path
    book: Path
    compressed_texts: list[str]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp("example")
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    # No token ends a text, so that a run lasts until it is ended.
    whole = tiny_model(vocab_size=end + 1, pad_token_id=end, eos_token_id=None, max_position_embeddings=CONTEXT)
    whole.generation_config = GenerationConfig(pad_token_id=end, do_sample=False)
    whole.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    inputs = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    whole = load_unsplit(folder / "model")
    with torch.inference_mode(), computing_in_groups(whole, len(PROMPTS)):
        tokens = whole.generate(inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=NEW_TOKENS)

    def new_texts(tokens: torch.Tensor) -> list[str]:
        return tokenizer.batch_decode(tokens[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)

    hashes = hash_layers(dict(enumerate(find_layers(whole)[1])))
    levels = {cut: [("rough", 5.0, 0.0)] for cut in CUTS}
    book = book_by_hand(levels, layers=LAYERS, width=HIDDEN, layer_hashes=list(hashes.values()))
    book.save(folder / "book.safetensors")
    plan = osp.Plan.manual(cuts=list(CUTS), layers=LAYERS)
    stages = tuple(replace(stage, node=name) for stage, name in zip(plan.stages, NODES, strict=True))
    workload = osp.Workload(micro_batches=2, prompt_tokens=16, new_tokens=NEW_TOKENS)
    plan = replace(plan, stages=stages, workload=workload, model=str(folder / "model"))
    plan.save(folder / "plan.json")
    pair = osp.Plan.manual(cuts=list(CUTS[:1]), layers=LAYERS)
    stages = tuple(replace(stage, node=name) for stage, name in zip(pair.stages, NODES[:2], strict=True))
    replace(pair, stages=stages, workload=workload, model=plan.model).save(folder / "pair.json")
    compressed = plan.with_levels(book, dict.fromkeys(CUTS, 0))
    compressed.save(folder / "compressed.json")
    with osp.Pipeline(compressed, codebook=book) as pipe:
        compressed_tokens = pipe.generate(inputs.input_ids, inputs.attention_mask, max_new_tokens=NEW_TOKENS)
    return Example(
        folder / "plan.json",
        folder / "pair.json",
        new_texts(tokens),
        folder / "compressed.json",
        folder / "book.safetensors",
        new_texts(compressed_tokens),
    )


def asked(*prompts: str) -> list[str]:
    return [word for prompt in prompts for word in ("--prompt", prompt)]


# On one machine.


def test_one_machine_runs_a_compressed_plan_and_listens_at_loopback_only(example: Example, tmp_path: Path) -> None:
    options = [*asked(*PROMPTS), "--codebook", str(example.book), "--json"]
    command = torchrun(["--standalone", "--nproc-per-node=3"], example.compressed, *options)
    heard = set()
    with running(tmp_path, [Machine(command)]) as machines:
        while machines[0].process.poll() is None:
            heard |= {address for process in machines.ranks() for address in listening(process)}
            with suppress(subprocess.TimeoutExpired):
                machines[0].process.wait(0.5)  # each look reads the environments of all processes here
        assert machines.wait() == [0], machines[0].err
        printed = json.loads(machines[0].out)
    assert printed["texts"] == example.compressed_texts != example.texts
    assert printed["recoveries"] == []
    assert len(printed["run"]["stages"]) == 3
    assert [link["frames"] for link in printed["run"]["links"]] == [len(PROMPTS) * NEW_TOKENS] * len(CUTS)
    assert heard == {"127.0.0.1"}


def test_another_number_of_processes_than_stages_is_an_error(example: Example, tmp_path: Path) -> None:
    command = torchrun(["--standalone", "--nproc-per-node=2"], example.plan, *asked("x"))
    with running(tmp_path, [Machine(command)]) as machines:
        assert machines.wait() == [1]
        assert "error: torchrun started 2 processes, the plan has 3 stages" in machines[0].err
        assert machines[0].out == ""


def test_a_rank_that_never_sends_a_heartbeat_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # A wrong option on one machine once left the others waiting for ten minutes.
    plan = osp.Plan.manual(cuts=[1], layers=2)
    timeouts = osp.Timeouts(heartbeat_s=HEARTBEAT_S, stall_s=10.0)
    store = ControlStore.host()
    launcher = LocalLauncher(store.address)
    workers = supervisor.Workers(store, timeouts, launcher, remote_nodes=("node 0", "node 1"))
    workers.check(plan, session=0)
    monkeypatch.setattr(supervisor, "_FIRST_HEARTBEAT_S", 0.0)
    monkeypatch.setattr(supervisor, "_READ_S", 0.0)
    with pytest.raises(osp.TransportError, match=r'^node "node 0" \(stage 0, .* no heartbeat within 0 s') as caught:
        workers.check(plan, session=0)
    assert (caught.value.kind, caught.value.node) == ("hangs", "node 0")


# On several.


@pytest.fixture(scope="module")
def spaces() -> Iterator[Namespaces]:
    nodes = tuple(osp.Node(name, 10**9, slowdown=1.0) for name in NODES)
    links = tuple(osp.Link(a, b, 20e6 / 8) for a in NODES for b in NODES if a != b)
    with Namespaces(osp.Network("three", nodes, links)) as made:
        yield made


def on_nodes(
    spaces: Namespaces,
    plan: Path,
    *options: str,
    nodes: Sequence[str] = NODES,
    environments: Mapping[str, dict[str, str]] | None = None,
) -> list[Machine]:
    """Return a machine for each node; the prompts, and all else that rank 0 alone looks at, are for the first."""
    machines, master = [], [f"--master-addr={spaces.address(NODES[0])}", "--master-port=29500"]
    for rank, node in enumerate(nodes):
        where = [f"--nnodes={len(nodes)}", f"--node-rank={rank}", *master]
        own = options if rank == 0 else asked("")
        # Without the name of the interface, which each process finds by itself.
        launch = ["env", "-u", "GLOO_SOCKET_IFNAME", *torchrun([*where, "--nproc-per-node=1"], plan, *own)]
        command = spaces.command(node, launch)
        machines.append(Machine(command, dict((environments or {}).get(node, {}))))
    return machines


@needs_namespaces
def test_several_machines_with_a_secret_give_the_text_of_the_whole_model(
    example: Example, spaces: Namespaces, tmp_path: Path
) -> None:
    shared = {node: {"ORBITSPLIT_SECRET": "only for us"} for node in NODES}
    pair = on_nodes(spaces, example.pair, *asked(*PROMPTS), "--json", nodes=NODES[:2], environments=shared)
    with running(tmp_path, pair) as machines:
        assert machines.wait() == [0, 0], machines[0].err
        assert json.loads(machines[0].out)["texts"] == example.texts
        assert machines[1].out == ""


@needs_namespaces
def test_a_machine_with_another_secret_ends_the_run(example: Example, spaces: Namespaces, tmp_path: Path) -> None:
    secrets = {"sat-0": {"ORBITSPLIT_SECRET": "only for us"}, "sat-1": {"ORBITSPLIT_SECRET": "something else"}}
    pair = on_nodes(spaces, example.pair, *asked(*PROMPTS), nodes=NODES[:2], environments=secrets)
    with running(tmp_path, pair) as machines:
        assert machines.wait()[0] != 0
        assert 'error: node "sat-1" (stage 1, layers 2-5) failed' in machines[0].err
        assert 'link from node "sat-0" to node "sat-1"' in machines[0].err
        assert "is corrupted or not authentic" in machines[0].err
        assert machines[0].out == ""


@needs_namespaces
def test_a_killed_machine_ends_the_run_by_name_and_only_one_interface_was_open(
    example: Example, spaces: Namespaces, tmp_path: Path
) -> None:
    options = [*asked(*PROMPTS), "--new-tokens", str(CONTEXT - 100)]
    with running(tmp_path, on_nodes(spaces, example.plan, *options)) as machines:
        wait_for_traffic(machines)
        for rank, node in enumerate(NODES):
            # Gloo, and on rank 0 the control store, at the address of the one interface.
            assert {a for process in machines.ranks(rank) for a in listening(process)} == {spaces.address(node)}
        (victim,) = machines.ranks(1)
        victim.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        codes = machines.wait()
        assert time.monotonic() - killed_s < HEARTBEAT_S + 60.0  # connections alone would wait for ten minutes
        assert codes[0] == codes[1] == 1
        assert 'error: node "sat-1" (stage 1, layers 2-3) sent no heartbeat for' in machines[0].err


def wait_for_traffic(machines: Machines) -> None:
    """Wait until activations go from the second machine to the third, by the link between them."""

    def goes() -> bool:
        ranks = machines.ranks(1)
        return bool(ranks) and sent_bytes(ranks[0])["to-2"] - before > 100 * 4 * HIDDEN

    machines.wait_until(lambda: machines.ranks(1))
    before = sent_bytes(machines.ranks(1)[0])["to-2"]
    machines.wait_until(goes)
