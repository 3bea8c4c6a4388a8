"""The schedule without processes: threads and queues, a toy model, and a judge that runs row by row."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orbitsplit.runtime._schedule import Job, Loopback, Sequences, Step, drive, follow

VOCABULARY, PAD = 23, 0


def next_token(tokens: list[int]) -> int:
    """The toy model: depends on every token so far, so a mixed-up cache shows."""
    state = 1
    for token in tokens:
        state = (state * 31 + token + 7) % 9973
    return state % VOCABULARY


def generate_by_rows(prompts: list[list[int]], new_tokens: int, eos: tuple[int, ...]) -> list[list[int]]:
    """The judge: transformers' greedy rules, one row after the other."""
    rows = []
    for prompt in prompts:
        row = list(prompt)
        while len(row) < len(prompt) + new_tokens and not (len(row) > len(prompt) and row[-1] in eos):
            row.append(next_token(row))
        rows.append(row)
    width = max(len(row) for row in rows)
    return [row + [PAD] * (width - len(row)) for row in rows]


@dataclass
class ToyStage:
    """First stage: keeps all tokens of a group and sends their count; last stage: predicts from tokens it is sent."""

    is_first: bool
    is_last: bool
    caches: dict[int, Tensor] = field(default_factory=dict)
    calls: list[tuple[int, int]] = field(default_factory=list)

    def forward(self, group: int, step: int, x: Tensor) -> Tensor:
        self.calls.append((group, step))
        old = self.caches.get(group)
        self.caches[group] = x if old is None else torch.cat([old, x], dim=1)
        if not self.is_last:
            return x
        return torch.tensor([next_token(row) for row in self.caches[group].tolist()])

    def drop(self, group: int) -> None:
        del self.caches[group]


@dataclass
class Wire:
    """A channel in memory that checks what a transport relies on."""

    messages: queue.Queue[Step] = field(default_factory=queue.Queue)
    expected: int = 0
    received: int = 0
    log: list[tuple[int, int, bool]] = field(default_factory=list)

    def expect(self, messages: int) -> None:
        self.expected += messages

    def receive(self) -> Step:
        assert self.expected > self.received, "a message that nobody was told to expect"
        self.received += 1
        return self.messages.get(timeout=20)

    def send(self, group: int, step: int, x: Tensor) -> None:
        self.log.append((group, step, False))
        self.messages.put(Step(group, step, x))

    def end(self, group: int) -> None:
        self.log.append((group, -1, True))
        self.messages.put(Step(group, 0, None))


class TokenWire(Wire):
    """The channel back to the first stage, which carries no ends."""

    def end(self, group: int) -> None:
        pass


def run_chain(job: Job, prompts: Tensor, stages: int) -> tuple[Tensor, list[ToyStage], list[Wire]]:
    toys = [ToyStage(k == 0, k == stages - 1) for k in range(stages)]
    wires = [Wire() for _ in range(stages - 1)] + [TokenWire()]
    sequences = Sequences(job, prompts)
    threads = [threading.Thread(target=follow, args=(job, toys[k], wires[k - 1], wires[k])) for k in range(1, stages)]
    for thread in threads:
        thread.start()
    drive(job, sequences, toys[0], wires[-1], wires[0])
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    return sequences.result(), toys, wires


def make_job(rows: int, prompt_tokens: int, new_tokens: int, groups: int, eos: tuple[int, ...] = ()) -> Job:
    return Job(0, rows, prompt_tokens, new_tokens, groups, eos, PAD)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    prompt_tokens=st.integers(1, 4),
    new_tokens=st.integers(1, 8),
    groups=st.integers(1, 6),
    stages=st.integers(2, 4),
    eos=st.sets(st.integers(0, VOCABULARY - 1), max_size=4),
    seed=st.integers(0, 1000),
)
def test_any_chain_gives_the_tokens_of_the_rows_on_their_own(
    rows: int, prompt_tokens: int, new_tokens: int, groups: int, stages: int, eos: set[int], seed: int
) -> None:
    prompts = torch.randint(0, VOCABULARY, (rows, prompt_tokens), generator=torch.Generator().manual_seed(seed))
    job = make_job(rows, prompt_tokens, new_tokens, min(groups, rows), tuple(sorted(eos)))
    result, toys, wires = run_chain(job, prompts, stages)
    assert result.tolist() == generate_by_rows(prompts.tolist(), new_tokens, job.eos_token_ids)
    for wire in wires:
        # No receive is left over to swallow a message of the next job, and no message is left unread.
        assert wire.expected == wire.received
        assert wire.messages.empty()
    assert all(not toy.caches for toy in toys)


def test_one_stage_needs_no_messages() -> None:
    prompts = torch.tensor([[1, 2], [3, 4], [5, 6]])
    job = make_job(3, 2, 9, 2, eos=(4,))
    sequences, loopback = Sequences(job, prompts), Loopback()
    drive(job, sequences, ToyStage(True, True), loopback, loopback)
    assert sequences.result().tolist() == generate_by_rows(prompts.tolist(), 9, (4,))


def test_all_prompts_enter_before_any_group_decodes() -> None:
    job = make_job(4, 2, 3, 4)
    _, toys, wires = run_chain(job, torch.ones(4, 2, dtype=torch.int64), stages=3)
    assert toys[0].calls[:4] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    for group in range(4):
        of_group = [(step, is_end) for g, step, is_end in wires[0].log if g == group]
        assert of_group == [(0, False), (1, False), (2, False), (-1, True)]


def test_a_group_goes_on_without_waiting_for_the_others() -> None:
    # Only group 0's tokens come back: it must reach its end although group 1 is stuck in prefill.
    job = make_job(2, 1, 3, 2)
    returned, onward = TokenWire(), Wire()
    for step in range(3):
        returned.send(0, step, torch.tensor([5]))
    stage = ToyStage(True, False)
    sequences = Sequences(job, torch.tensor([[1], [2]]))
    thread = threading.Thread(target=drive, args=(job, sequences, stage, returned, onward))
    thread.start()
    seen = [onward.messages.get(timeout=20) for _ in range(5)]
    assert [(s.group, s.step, s.x is None) for s in seen] == [
        (0, 0, False),
        (1, 0, False),
        (0, 1, False),
        (0, 2, False),
        (0, 0, True),
    ]
    for step in range(3):
        returned.send(1, step, torch.tensor([6]))
    thread.join(timeout=20)
    assert sequences.result().tolist() == [[1, 5, 5, 5], [2, 6, 6, 6]]


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (5, 2), (7, 3), (4, 4)])
def test_groups_divide_the_rows_into_nearly_equal_parts(rows: int, groups: int) -> None:
    job = make_job(rows, 1, 1, groups)
    parts = [list(range(rows))[job.rows_of(group)] for group in range(groups)]
    assert [row for part in parts for row in part] == list(range(rows))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert job.largest_group == max(sizes)


def test_an_ended_row_is_padded_and_its_group_goes_on() -> None:
    job = make_job(2, 1, 5, 1, eos=(9,))
    sequences = Sequences(job, torch.tensor([[1], [2]]))
    assert sequences.append(0, torch.tensor([9, 3]))
    assert sequences.append(0, torch.tensor([4, 4]))
    assert sequences.last(0).tolist() == [[PAD], [4]]
    assert not sequences.append(0, torch.tensor([4, 9]))
    assert sequences.result().tolist() == [[1, 9, PAD, PAD], [2, 3, 4, 9]]


def test_records_travel_as_json() -> None:
    job = make_job(5, 2, 3, 2, eos=(1, 2))
    assert Job.from_json(job.to_json()) == job
