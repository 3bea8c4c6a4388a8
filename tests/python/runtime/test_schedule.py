"""The schedule without processes: a toy model on links in memory, and a judge that runs row by row."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orbitsplit import TransportError
from orbitsplit.runtime._drafts import DraftLength
from orbitsplit.runtime._messages.groups import Group, with_caches
from orbitsplit.runtime._messages.limits import Limits
from orbitsplit.runtime._messages.packs import FIRST_PACK, Part
from orbitsplit.runtime._schedule.first_stage import MAX_CORRUPTIONS, FirstStage
from orbitsplit.runtime._schedule.follower import Follower, run_follower
from orbitsplit.runtime._schedule.protocol import Kind, Loopback, Message, PackResult

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
    """Keeps all tokens of a group; passes them on, or on the last stage predicts from them.

    `raises(group, step)` may raise an error in the place of a forward.
    """

    is_last: bool
    name: str = "toy"
    raises: Callable[[int, int], None] = lambda _group, _step: None
    caches: dict[int, list[Tensor]] = field(default_factory=dict)
    begun: list[Group] = field(default_factory=list)
    calls: list[tuple[int, int]] = field(default_factory=list)
    packs: list[tuple[Part, ...]] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)
    moved: dict[int, Tensor] = field(default_factory=dict)

    def begin(self, group: Group) -> None:
        self.begun.append(group)
        self.caches[group.id] = [self.moved.pop(group.id)] if group.is_moved else []
        if group.prefix_of is not None:
            self.caches[group.id] = [self.kept[group.prefix_of][:, : group.known_tokens]]

    def forward(self, group: int, step: int, x: Any) -> Tensor | None:
        self.calls.append((group, step))
        self.raises(group, step)
        described = self.begun_as(group)
        positions = described.positions(step, x.shape[1])
        known = torch.cat(self.caches[group], dim=1) if self.caches[group] else x[:, :0]
        # Guesses that were wrong are taken back; nothing else is missing or comes twice.
        assert known.shape[1] == positions.start or (described.draft_tokens and known.shape[1] > positions.start)
        known = torch.cat([known[:, : positions.start], x], dim=1)
        self.caches[group] = [known]
        if not self.is_last:
            return x  # type: ignore[no-any-return]
        if step < 0:
            return None
        if not described.generates:
            return torch.zeros(0, dtype=torch.int64)
        if step == 0 or not described.draft_tokens:
            return torch.tensor([next_token(row) for row in known.tolist()])
        row = known[0].tolist()
        return torch.tensor([next_token(row[: stop + 1]) for stop in positions])

    def forward_pack(self, parts: Sequence[Part], x: Tensor) -> PackResult:
        self.packs.append(tuple(parts))
        outputs, left, errors = [x[:, :0]] if not self.is_last else [], [], {}
        for part, own in zip(parts, torch.split(x, [part.tokens for part in parts], dim=1), strict=True):
            try:
                outputs.append(self.forward(part.group, part.step, own))
                left.append(part)
            except ValueError as error:
                errors[part.group] = f"toy: {error}"
        return PackResult(torch.cat(outputs, dim=0 if self.is_last else 1), tuple(left), errors)

    def begun_as(self, group: int) -> Group:
        return next(one for one in reversed(self.begun) if one.id == group)

    def drop(self, group: int) -> None:
        self.caches.pop(group, None)

    def keep(self, group: int, tokens: int) -> None:
        (known,) = self.caches.pop(group)
        assert known.shape[1] >= tokens
        self.kept[group] = known[:, :tokens]

    def has_kept(self, group: int, tokens: int) -> bool:
        return self.kept[group].shape[1] >= tokens

    def forget(self, group: int) -> None:
        self.kept.pop(group, None)


@dataclass
class Wire:
    """A link in memory. `corrupts(message)` says which messages of activations arrive corrupted."""

    corrupts: Callable[[Message], bool] = lambda _message: False
    messages: deque[Message] = field(default_factory=deque)
    kept: dict[int, dict[int, Message]] = field(default_factory=dict)

    def begin(self, group: Group, x: Tensor) -> None:
        self._keep(Message(Kind.BEGIN, group.id, group.first_step, x, group))

    def send(self, group: int, step: int, x: Tensor) -> None:
        self._keep(Message(Kind.STEP, group, step, x))

    def send_pack(self, number: int, parts: Sequence[Part], x: Tensor) -> None:
        for part in parts:
            self.kept.get(part.group, {}).clear()
        self._keep(Message(Kind.PACK, number, 0, x, parts=tuple(parts)))

    def forget(self, number: int) -> None:
        self.kept.pop(number, None)

    def repeat(self, group: int, step: int) -> None:
        self._put(self.kept[group][step])

    def notify(self, kind: Kind, group: int = 0, reason: str = "", step: int = 0) -> None:
        if kind in (Kind.END, Kind.KEEP):
            self.kept.pop(group, None)
        self.messages.append(Message(kind, group, step, reason=reason))

    def _keep(self, message: Message) -> None:
        if message.step > 0:
            self.kept.setdefault(message.group, {}).clear()
        self.kept.setdefault(message.group, {})[message.step] = message
        self._put(message)

    def _put(self, message: Message) -> None:
        self.messages.append(self.damaged(message) if self.corrupts(message) else message)

    def damaged(self, message: Message) -> Message:
        return message._replace(x=None)

    def receive(self) -> Message:
        return self.messages.popleft()


class TokenWire(Wire):
    """The link back to the first stage, which carries tokens and CORRUPTED."""

    def begin(self, group: Group, x: Tensor) -> None:
        self.send(group.id, 0, x)

    def repeat(self, group: int, step: int) -> None:
        if step >= 0:
            super().repeat(group, step)

    def damaged(self, message: Message) -> Message:
        return Message(Kind.CORRUPTED, message.group)

    def notify(self, kind: Kind, group: int = 0, reason: str = "", step: int = 0) -> None:
        if kind in (Kind.CORRUPTED, Kind.FAILED):
            super().notify(kind, group, reason)
        elif kind in (Kind.END, Kind.KEEP):
            self.kept.pop(group, None)


@dataclass
class Reported:
    """What the first stage reported."""

    got: dict[int, list[Tensor]] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    failed: dict[int, tuple[str, str]] = field(default_factory=dict)
    retried: list[tuple[int, int, int]] = field(default_factory=list)
    held_back: list[int] | None = None

    def drained(self, groups: Sequence[int]) -> None:
        assert self.held_back is None, "it is reported once"
        self.held_back = list(groups)

    def tokens(self, group: int, tokens: Tensor, details: Tensor | None = None) -> None:
        self.got.setdefault(group, []).append(tokens)

    def end(self, group: int) -> None:
        self.ended.append(group)

    def retry(self, group: int, tokens: int, failures: int) -> None:
        self.retried.append((group, tokens, failures))

    def fail(self, group: int, kind: str, reason: str) -> None:
        self.failed[group] = (kind, reason)


def limits_of(most_groups: int, packs: int = 1) -> Limits:
    return Limits(most_groups=most_groups, most_sequences=most_groups, most_packs=packs, pack_tokens=12)


class Chain:
    """Stages and links in memory; what is delivered next is chosen by a random number, each link keeps its order."""

    def __init__(
        self,
        stages: int,
        *,
        most_groups: int = 99,
        packs: int = 1,
        seed: int = 0,
        corrupts: Callable[[Message], bool] | None = None,
    ) -> None:
        quiet = corrupts or (lambda _message: False)
        self.toys = [ToyStage(k == stages - 1) for k in range(stages)]
        self.wires = [Wire(quiet) for _ in range(stages - 1)] + [TokenWire(quiet)]
        self.report = Reported()
        self.followers = [Follower(*ends) for ends in zip(self.toys[1:], self.wires[1:], strict=True)]
        self.first = FirstStage(self.toys[0], self.wires[0], self.report, limits_of(most_groups, packs))
        self._random = random.Random(seed)

    def begin(self, group: Group, prompts: Tensor) -> None:
        """Begin a group, and run its prompt on the first stage if it may start."""
        self.first.begin(group, prompts)
        while self.first.has_work:
            self.first.advance()

    def deliver(self) -> bool:
        """Deliver one message, or run a prompt's next chunk; return whether there was any."""
        ready = [k for k, wire in enumerate(self.wires) if wire.messages]
        ready += [-1] if self.first.has_work else []
        if not ready:
            return False
        k = self._random.choice(ready)
        if k == -1:
            self.first.advance()
            return True
        if k == len(self.wires) - 1:
            self.first.returned(self.wires[k].receive())
            return True
        self.followers[k].take(self.wires[k].receive())
        return True

    def run(self) -> None:
        while self.deliver():
            pass

    def rows(self, group: Group, prompts: Tensor) -> list[list[int]]:
        return torch.cat([prompts, *(got[:, None] for got in self.report.got.get(group.id, []))], dim=1).tolist()  # type: ignore[no-any-return]


def make_group(
    number: int,
    prompts: Tensor,
    new_tokens: int,
    eos: tuple[int, ...] = (),
    chunk_tokens: int | None = None,
    draft_tokens: int = 0,
    is_packable: bool = False,
) -> Group:
    drafts = draft_tokens if len(prompts) == 1 else 0
    return Group(
        number,
        *prompts.shape,
        None,
        new_tokens,
        eos,
        PAD,
        chunk_tokens=chunk_tokens,
        draft_tokens=drafts,
        is_packable=is_packable and len(prompts) == 1,
    )


def make_prompts(rows: int, tokens: int, seed: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def with_tokens(group: Group, prompts: Tensor, got: list[Tensor]) -> tuple[Group, Tensor]:
    """Return a group and its input as it restarts with tokens that it has."""
    if not got:
        return group, prompts
    tokens = torch.stack(got, dim=1)
    return group.continued(tokens), torch.cat([prompts, tokens], dim=1)


chunks = st.none() | st.integers(1, 4)
drafts = st.sampled_from([0, 0, 1, 5])
batches = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 30), chunks, drafts, st.booleans()),
    min_size=1,
    max_size=7,
)


@settings(max_examples=100, deadline=None)
@given(
    batches=batches,
    stages=st.integers(2, 4),
    most_groups=st.integers(1, 7),
    packs=st.integers(1, 3),
    eos=st.sets(st.integers(0, VOCABULARY - 1), max_size=4),
    seed=st.integers(0, 1000),
    corruption=st.sampled_from([0.0, 0.0, 0.1, 0.3]),
)
def test_any_chain_gives_the_tokens_of_the_rows_on_their_own(
    batches: list[tuple[int, int, int, int | None, int, bool]],
    stages: int,
    most_groups: int,
    packs: int,
    eos: set[int],
    seed: int,
    corruption: float,
) -> None:
    source = random.Random(seed)
    chain = Chain(
        stages, most_groups=most_groups, packs=packs, seed=seed, corrupts=lambda _: source.random() < corruption
    )
    groups = []
    for number, (rows, tokens, new_tokens, *asked) in enumerate(batches):
        prompts = make_prompts(rows, tokens, seed + number)
        group = make_group(number, prompts, new_tokens, tuple(sorted(eos)), *asked)
        groups.append((replace(group, is_recorded=source.random() < 0.5), prompts))
        chain.first.begin(*groups[-1])
        for _ in range(source.randrange(6)):  # groups begin during others
            chain.deliver()
    chain.run()
    for group, prompts in groups:
        if group.id not in chain.report.failed:
            expected = generate_by_rows(prompts.tolist(), group.max_new_tokens, group.eos_token_ids)
            assert chain.rows(group, prompts) == expected
            assert chain.report.ended.count(group.id) == 1
    assert corruption or not chain.report.failed
    assert all(kind == "corruption" for kind, _ in chain.report.failed.values())
    assert all(not toy.caches for toy in chain.toys)
    assert not any(wire.messages or wire.kept for wire in chain.wires)


def test_one_stage_sends_to_its_own_inbox() -> None:
    prompts = make_prompts(3, 2, 1)
    inbox: deque[Message] = deque()
    report = Reported()
    first = FirstStage(ToyStage(True), Loopback(inbox.append), report, limits_of(2))
    first.begin(make_group(0, prompts, 9, (4,)), prompts)
    first.advance()
    while inbox:
        first.returned(inbox.popleft())
    got = torch.cat([prompts, torch.stack(report.got[0], dim=1)], dim=1)
    assert got.tolist() == generate_by_rows(prompts.tolist(), 9, (4,))


def test_all_prompts_enter_before_any_group_decodes() -> None:
    chain = Chain(3)
    for number in range(4):
        prompts = make_prompts(1, 2, number)
        chain.begin(make_group(number, prompts, 3), prompts)
    assert chain.toys[0].calls == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_a_group_continues_without_waiting_for_the_others() -> None:
    # Only group 0's tokens come back: it must reach its end although group 1 is stuck in prefill.
    chain = Chain(2)
    for number in range(2):
        prompts = make_prompts(1, 1, number)
        chain.begin(make_group(number, prompts, 3), prompts)
    for step in range(3):
        chain.first.returned(Message(Kind.STEP, 0, step, torch.tensor([5])))
    assert [token.item() for token in chain.report.got[0]] == [5, 5, 5]
    assert chain.report.ended == [0]


def test_no_more_groups_than_allowed_are_in_flight_in_order_of_arrival() -> None:
    chain = Chain(2, most_groups=2)
    for number in range(5):
        prompts = make_prompts(1, 1, number)
        chain.begin(make_group(number, prompts, 2), prompts)
    most = 0
    while chain.deliver():
        most = max(most, len(chain.toys[0].caches))
    assert most == 2
    assert [group.id for group in chain.toys[0].begun] == [0, 1, 2, 3, 4]
    assert sorted(chain.report.ended) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("new_tokens", [1, 3])
def test_no_more_prompts_than_planned_are_under_way(new_tokens: int) -> None:
    chain = Chain(3, seed=new_tokens)
    chain.first.limits = replace(chain.first.limits, most_prompts=2)
    for number in range(9):
        prompts = make_prompts(1, 4, number)
        chain.begin(make_group(number, prompts, new_tokens, chunk_tokens=2), prompts)
    most = 0
    while chain.deliver():
        begun = {group.id for group in chain.toys[0].begun}
        most = max(most, len(begun - set(chain.report.got) - set(chain.report.ended)))
    assert most == 2
    assert sorted(chain.report.ended) == list(range(9))


def test_a_cancelled_group_ends_with_the_tokens_it_has() -> None:
    chain = Chain(2, most_groups=1)
    for number in range(3):
        prompts = make_prompts(1, 1, number)
        chain.begin(make_group(number, prompts, 50), prompts)
    while len(chain.report.got.get(0, [])) < 3:
        chain.deliver()
    chain.first.cancel(1)  # waits still
    assert chain.report.ended == [1]
    chain.first.cancel(0)
    chain.run()
    assert len(chain.report.got[0]) <= 4
    assert 1 not in chain.report.got
    assert chain.report.ended == [1, 0, 2]
    chain.first.cancel(2)  # is over
    assert chain.report.ended == [1, 0, 2]


@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("step", [0, 1, 4])
def test_a_corrupted_message_changes_no_token(hop: int, step: int) -> None:
    left = [1]

    def corrupts(message: Message) -> bool:
        is_it = message.step == step and message.kind in (Kind.BEGIN, Kind.STEP) and left[0] > 0
        left[0] -= is_it
        return is_it

    chain = Chain(3)
    chain.wires[hop].corrupts = corrupts
    prompts = make_prompts(2, 3, 5)
    group = make_group(0, prompts, 6, (9,))
    chain.begin(group, prompts)
    chain.run()
    assert left == [0]
    assert chain.rows(group, prompts) == generate_by_rows(prompts.tolist(), 6, (9,))
    assert chain.report.retried == [(0, step, 1)]
    # It was sent again, and nothing was computed again, which might round differently.
    assert [len(toy.begun) for toy in chain.toys] == [1, 1, 1]


@pytest.mark.parametrize("hop", [0, 1])
@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_a_corrupted_chunk_is_sent_again_with_those_behind_it(hop: int, chunk: int) -> None:
    left = [1]

    def corrupts(message: Message) -> bool:
        is_it = message.step == chunk - 3 and left[0] > 0
        left[0] -= is_it
        return is_it

    chain = Chain(3)
    chain.wires[hop].corrupts = corrupts
    prompts = make_prompts(2, 7, 5)
    group = make_group(0, prompts, 3, chunk_tokens=2)
    chain.begin(group, prompts)
    chain.run()
    assert left == [0]
    assert chain.rows(group, prompts) == generate_by_rows(prompts.tolist(), 3, ())
    assert chain.report.retried == [(0, 0, 1)]
    steps = [(0, step) for step in (-3, -2, -1, 0, 1, 2)]
    assert [toy.calls for toy in chain.toys] == [steps] * 3


def test_a_damaged_link_asks_once_for_chunks_that_are_missing() -> None:
    damaged = {-3, -2, 0}

    def corrupts(message: Message) -> bool:
        is_it = message.step in damaged
        damaged.discard(message.step)
        return is_it

    chain = Chain(2)
    chain.wires[0].corrupts = corrupts
    prompts = make_prompts(1, 4, 5)
    chain.begin(make_group(0, prompts, 1, chunk_tokens=1), prompts)
    chain.run()
    assert damaged == set()
    assert chain.report.retried == [(0, 0, 1)]
    assert len(chain.report.got[0]) == 1


def test_many_chunks_may_be_damaged_more_often_than_one_message() -> None:
    source = random.Random(1)
    chain = Chain(3, corrupts=lambda message: message.step <= 0 and source.random() < 0.2)
    prompts = make_prompts(1, 64, 5)
    group = make_group(0, prompts, 2, chunk_tokens=1)
    chain.begin(group, prompts)
    chain.run()
    assert len(chain.report.retried) > MAX_CORRUPTIONS
    assert chain.report.failed == {}
    assert chain.rows(group, prompts) == generate_by_rows(prompts.tolist(), 2, ())


def test_guesses_that_are_right_save_laps(monkeypatch: pytest.MonkeyPatch) -> None:
    # A text that repeats: after a round of it every guess is right.
    monkeypatch.setattr("tests.python.runtime.test_schedule.next_token", lambda tokens: (tokens[-1] + 1) % 4)
    monkeypatch.setattr(DraftLength, "choose", lambda _: 5)  # not by how long laps of a toy take
    chain = Chain(3)
    prompts = torch.tensor([[0, 1, 2, 3, 0]])
    chain.begin(make_group(0, prompts, 24, draft_tokens=5), prompts)
    chain.run()
    assert [int(token) for token in chain.report.got[0]] == [number % 4 for number in range(1, 25)]
    steps = [step for _, step in chain.toys[0].calls]
    assert [toy.calls for toy in chain.toys] == [chain.toys[0].calls] * 3
    assert steps[0] == 0
    assert steps == [0, 1, 7, 13, 19]


def test_tokens_of_others_go_on_between_the_chunks_of_a_prompt() -> None:
    chain = Chain(2)
    short, long = make_prompts(1, 1, 0), make_prompts(1, 8, 1)
    chain.begin(make_group(0, short, 3), short)
    chain.first.begin(make_group(1, long, 1, chunk_tokens=2), long)
    for step in range(2):
        chain.first.advance()
        chain.first.returned(Message(Kind.STEP, 0, step, torch.tensor([5])))
    assert chain.toys[0].calls == [(0, 0), (1, -3), (0, 1), (1, -2), (0, 2)]


def test_steps_of_a_recorded_call_go_behind_all_its_prompts() -> None:
    chain = Chain(2)
    prompts = [make_prompts(1, 4, number) for number in range(3)]
    for number, one in enumerate(prompts):
        chain.first.begin(replace(make_group(number, one, 2, chunk_tokens=2), is_recorded=True), one)
    for _ in range(4):
        chain.first.advance()
    for number in (0, 1):
        chain.first.returned(Message(Kind.STEP, number, 0, torch.tensor([5])))
    assert chain.toys[0].calls == [(0, -1), (0, 0), (1, -1), (1, 0)]
    while chain.first.has_work:
        chain.first.advance()
    assert chain.toys[0].calls[4:] == [(2, -1), (2, 0), (0, 1), (1, 1)]


def test_a_step_that_lets_prompts_pass_is_cancelled_like_any_other() -> None:
    chain = Chain(2)
    prompts = [make_prompts(1, 4, number) for number in range(2)]
    for number, one in enumerate(prompts):
        chain.first.begin(replace(make_group(number, one, 3, chunk_tokens=2), is_recorded=True), one)
    chain.first.advance()
    chain.first.advance()
    chain.first.returned(Message(Kind.STEP, 0, 0, torch.tensor([5])))
    chain.first.cancel(0)
    assert chain.report.ended == [0]
    chain.run()
    assert chain.rows(make_group(1, prompts[1], 3), prompts[1]) == generate_by_rows(prompts[1].tolist(), 3, ())
    assert all(not toy.caches for toy in chain.toys)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_an_error_in_a_chunk_ends_its_group_alone(stage: int) -> None:
    chain = Chain(3)

    def raises(group: int, step: int) -> None:
        if (group, step) == (0, -1):
            raise ValueError("no")

    chain.toys[stage].raises = raises
    long, short = make_prompts(1, 8, 1), make_prompts(1, 2, 0)
    chain.begin(make_group(0, long, 3, chunk_tokens=2), long)
    other = make_group(1, short, 3)
    chain.begin(other, short)
    chain.run()
    assert chain.report.failed == {0: ("request", "toy: ValueError: no")}
    assert chain.rows(other, short) == generate_by_rows(short.tolist(), 3, ())
    assert all(not toy.caches for toy in chain.toys)


def test_a_group_cancelled_between_two_chunks_ends_without_the_others() -> None:
    chain = Chain(2)
    prompts = make_prompts(1, 8, 1)
    chain.first.begin(make_group(0, prompts, 3, chunk_tokens=2), prompts)
    chain.first.advance()
    chain.first.cancel(0)
    assert chain.report.ended == [0]
    assert not chain.first.has_work
    chain.run()
    assert chain.toys[0].calls == [(0, -3)]
    assert (chain.report.got, chain.toys[1].caches) == ({}, {})


def test_a_group_whose_messages_never_arrive_whole_is_given_up() -> None:
    chain = Chain(2, corrupts=lambda message: message.kind is Kind.BEGIN and message.group == 0)
    for number in range(2):
        prompts = make_prompts(1, 2, number)
        chain.begin(make_group(number, prompts, 3), prompts)
    chain.run()
    assert chain.report.retried == [(0, 0, count + 1) for count in range(MAX_CORRUPTIONS)]
    reason = f"{MAX_CORRUPTIONS + 1} of its messages in a row arrived corrupted"
    assert chain.report.failed == {0: ("corruption", reason)}
    assert chain.report.ended == [1]
    assert all(not toy.caches for toy in chain.toys)


def test_a_group_that_generates_nothing_ends_with_its_first_message() -> None:
    chain = Chain(3)
    prompts = make_prompts(2, 3, 0)
    chain.begin(make_group(0, prompts, 0), prompts)
    chain.run()
    assert chain.report.got == {}
    assert chain.report.ended == [0]
    assert chain.toys[2].calls == [(0, 0)]


def test_rows_that_ended_before_get_the_pad_token_only() -> None:
    chain = Chain(2)
    prompts = make_prompts(2, 2, 0)
    chain.begin(Group(0, 2, 2, None, 3, (), PAD, ended_rows=(1,)), prompts)
    chain.run()
    got = torch.stack(chain.report.got[0], dim=1)
    assert got[1].tolist() == [PAD] * 3
    assert [*prompts[0].tolist(), *got[0].tolist()] == generate_by_rows(prompts[:1].tolist(), 3, ())[0]


def test_the_request_to_stop_reaches_all_stages() -> None:
    wires = [Wire() for _ in range(3)]
    wires[0].notify(Kind.STOP)
    for k in range(2):
        run_follower(ToyStage(False), wires[k], wires[k + 1])
    assert wires[2].receive().kind is Kind.STOP


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_an_error_for_one_group_ends_that_group_alone(stage: int, step: int) -> None:
    # It ended the process of the stage, and with it all groups.
    chain = Chain(3, most_groups=2)

    def raises(group: int, at: int) -> None:
        if (group, at) == (1, step):
            raise IndexError("index 7 is out of range")

    chain.toys[stage].raises = raises
    groups = []
    for number in range(4):
        prompts = make_prompts(2, 3, number)
        groups.append((make_group(number, prompts, 5), prompts))
        chain.begin(*groups[-1])
    chain.run()
    assert chain.report.failed == {1: ("request", "toy: IndexError: index 7 is out of range")}
    assert len(chain.report.got.get(1, [])) == step
    assert sorted(chain.report.ended) == [0, 2, 3]
    for group, prompts in groups:
        if group.id != 1:
            assert chain.rows(group, prompts) == generate_by_rows(prompts.tolist(), 5, ())
    assert all(not toy.caches for toy in chain.toys)
    assert not any(wire.messages for wire in chain.wires)


@pytest.mark.parametrize("error", [MemoryError("no room"), TransportError("the link broke")])
def test_an_error_of_the_stage_as_a_whole_is_raised(error: Exception) -> None:
    chain = Chain(2)

    def raises(_group: int, _step: int) -> None:
        raise error

    chain.toys[1].raises = raises
    prompts = make_prompts(1, 2, 0)
    chain.begin(make_group(0, prompts, 2), prompts)
    with pytest.raises(type(error), match=str(error)):
        chain.run()


def test_a_stage_that_failed_reports_it_again_when_asked_to_repeat() -> None:
    toy, wire = ToyStage(False), Wire()

    def raises(_group: int, step: int) -> None:
        if step == 1:
            raise ValueError("no")

    toy.raises = raises
    follower = Follower(toy, wire)
    prompts = make_prompts(1, 1, 0)
    for message in (
        Message(Kind.BEGIN, 0, 0, prompts, make_group(0, prompts, 9)),
        Message(Kind.STEP, 0, 1, prompts),
        Message(Kind.STEP, 0, 1, prompts),
    ):
        assert follower.take(message)
    assert [one.kind for one in wire.messages] == [Kind.BEGIN, Kind.FAILED, Kind.FAILED]
    assert toy.calls == [(0, 0), (0, 1)]


def test_any_number_of_groups_may_fail_in_a_row() -> None:
    chain = Chain(2, most_groups=1)

    def raises(group: int, _step: int) -> None:
        if group:
            raise ValueError("no")

    chain.toys[0].raises = raises
    for number in range(3000):  # more than calls may be nested
        prompts = make_prompts(1, 1, number)
        chain.begin(make_group(number, prompts, 2), prompts)
    chain.run()
    assert chain.report.ended == [0]
    assert len(chain.report.failed) == 2999


def test_a_cancelled_group_that_fails_ends_as_cancelled() -> None:
    chain = Chain(2)

    def raises(_group: int, step: int) -> None:
        if step == 1:
            raise ValueError("no")

    chain.toys[1].raises = raises
    prompts = make_prompts(1, 1, 0)
    chain.begin(make_group(0, prompts, 9), prompts)
    while chain.toys[1].calls != [(0, 0), (0, 1)]:
        chain.deliver()
    chain.first.cancel(0)
    chain.run()
    assert (chain.report.ended, chain.report.failed) == ([0], {})


def sharing_chain(stages: int, groups: int, *, new_tokens: int = 6, **options: Any) -> tuple[Chain, list[Any]]:
    """Return a chain with groups of one row that may share forwards, and those with their prompts."""
    chain, begun = Chain(stages, **options), []
    for number in range(groups):
        prompts = make_prompts(1, 2 + number % 3, number)
        begun.append((make_group(number, prompts, new_tokens, is_packable=True), prompts))
        chain.first.begin(*begun[-1])
    return chain, begun


def check_rows(chain: Chain, begun: list[Any]) -> None:
    for group, prompts in begun:
        assert chain.rows(group, prompts) == generate_by_rows(prompts.tolist(), group.max_new_tokens, ())


@pytest.mark.parametrize("packs", [1, 2, 3])
def test_groups_are_spread_evenly_over_the_packs_in_flight(packs: int) -> None:
    chain, begun = sharing_chain(3, 6, packs=packs)
    chain.run()
    check_rows(chain, begun)
    sizes = {len(pack) for toy in chain.toys for pack in toy.packs}
    assert max(sizes) == 6 // packs
    # Every stage ran the same packs.
    assert chain.toys[0].packs == chain.toys[1].packs == chain.toys[2].packs


def test_a_group_joins_and_leaves_packs_at_any_token() -> None:
    chain, begun = sharing_chain(2, 2, new_tokens=9)
    for _ in range(12):
        chain.deliver()
    prompts = make_prompts(1, 4, 9)
    begun.append((make_group(9, prompts, 2, is_packable=True), prompts))
    chain.first.begin(*begun[-1])
    chain.run()
    check_rows(chain, begun)
    assert {len(pack) for pack in chain.toys[1].packs} == {2, 3}


def test_an_error_of_one_group_in_a_pack_ends_that_group_alone() -> None:
    chain, begun = sharing_chain(3, 3)

    def raises(group: int, step: int) -> None:
        if (group, step) == (1, 3):
            raise ValueError("no such position")

    chain.toys[1].raises = raises
    chain.run()
    assert chain.report.failed == {1: ("request", "toy: no such position")}
    check_rows(chain, [begun[0], begun[2]])
    assert not any(wire.kept for wire in chain.wires)
    assert not any(toy.caches for toy in chain.toys)


def test_an_error_of_one_group_on_the_first_stage_ends_that_group_alone() -> None:
    chain, begun = sharing_chain(2, 3)

    def raises(group: int, step: int) -> None:
        if (group, step) == (2, 2):
            raise ValueError("no such position")

    chain.toys[0].raises = raises
    chain.run()
    assert chain.report.failed == {2: ("request", "toy: no such position")}
    check_rows(chain, begun[:2])


@pytest.mark.parametrize("wire", [0, 1, 2])
def test_a_corrupted_pack_is_sent_again_and_nothing_is_computed_twice(wire: int) -> None:
    chain, begun = sharing_chain(3, 4)
    count = 0

    def corrupts(message: Message) -> bool:
        nonlocal count
        count += message.kind is Kind.PACK
        return message.kind is Kind.PACK and count % 2 == 1

    chain.wires[wire].corrupts = corrupts
    chain.run()
    check_rows(chain, begun)
    for toy in chain.toys:
        assert len(toy.calls) == len(set(toy.calls))
    assert len(chain.report.retried) == sum(map(len, chain.toys[0].packs))


def test_a_pack_that_never_arrives_whole_fails_its_groups_alone() -> None:
    chain, _ = sharing_chain(2, 2)
    alone = make_prompts(2, 3, 7)
    group = make_group(7, alone, 6)
    chain.first.begin(group, alone)
    chain.wires[0].corrupts = lambda message: message.kind is Kind.PACK
    chain.run()
    assert {number: kind for number, (kind, _) in chain.report.failed.items()} == {0: "corruption", 1: "corruption"}
    check_rows(chain, [(group, alone)])


def test_a_cancelled_group_leaves_its_pack() -> None:
    chain, begun = sharing_chain(3, 3, new_tokens=20)
    while not chain.toys[0].packs:
        chain.deliver()
    chain.first.cancel(1)
    chain.run()
    check_rows(chain, [begun[0], begun[2]])
    assert chain.report.ended.count(1) == 1
    assert len(chain.report.got[1]) < 20


def test_groups_wait_for_room_in_the_caches_in_their_order() -> None:
    chain, begun = sharing_chain(2, 4, new_tokens=6)  # up to 8, 9, 10 and 8 tokens
    chain.first.limits = replace(limits_of(9), cache_tokens=18)
    seen = []
    while chain.deliver():
        held = list(chain.toys[0].caches)
        assert sum(chain.toys[0].begun_as(group).tokens + 6 for group in held) <= 18
        seen.append(held)
    check_rows(chain, begun)
    assert [0, 1] in seen
    assert [2, 3] in seen
    assert chain.report.ended.index(2) > chain.report.ended.index(1)


def test_a_group_larger_than_the_caches_runs_alone() -> None:
    chain, begun = sharing_chain(2, 3)
    chain.first.limits = replace(limits_of(9), cache_tokens=1)
    while chain.deliver():
        assert len(chain.toys[0].caches) <= 1
    check_rows(chain, begun)


def test_a_pack_has_no_more_tokens_than_allowed() -> None:
    chain, begun = sharing_chain(2, 8)
    chain.first.limits = replace(limits_of(9), pack_tokens=3)
    chain.run()
    check_rows(chain, begun)
    assert max(sum(part.tokens for part in pack) for pack in chain.toys[0].packs) == 3


def run_alike(chain: Chain, texts: list[list[int]], new_tokens: int = 4, **options: Any) -> list[Any]:
    """Run groups with these prompts one after the other; return them with their prompts."""
    begun = []
    for number, text in enumerate(texts):
        prompts = torch.tensor([text])
        group = replace(make_group(number, prompts, new_tokens, **options), shares_prefix=True)
        begun.append((group, prompts))
        chain.first.begin(group, prompts)
        chain.run()
    return begun


LONG = [3 + k % 11 for k in range(30)]


@pytest.mark.parametrize("chunk_tokens", [None, 3])
def test_a_prompt_that_begins_like_an_earlier_one_starts_behind_what_they_share(chunk_tokens: int | None) -> None:
    chain = Chain(3)
    chain.first.limits = replace(limits_of(9), prefix_tokens=200)
    begun = run_alike(chain, [[*LONG, 1, 2], [*LONG, 5, 6, 7], LONG], chunk_tokens=chunk_tokens)
    check_rows(chain, begun)
    for toy in chain.toys:
        # The last one is all known, and one token has to run.
        assert [(group.prefix_of, group.known_tokens) for group in toy.begun] == [(None, 0), (0, 30), (0, 29)]
        assert not toy.caches


def test_an_answer_counts_as_the_beginning_of_the_next_question() -> None:
    chain = Chain(2)
    chain.first.limits = replace(limits_of(9), prefix_tokens=200)
    answer = generate_by_rows([LONG], 4, ())[0]
    begun = run_alike(chain, [LONG, [*answer, 9, 9]])
    check_rows(chain, begun)
    assert [group.known_tokens for group in chain.toys[1].begun] == [0, len(answer) - 1]
    # The longer text has the shorter one in it.
    assert [list(toy.kept) for toy in chain.toys] == [[1], [1]]


def test_what_is_kept_keeps_its_limit_and_the_latest() -> None:
    chain = Chain(2)
    chain.first.limits = replace(limits_of(9), prefix_tokens=70)
    texts = [[k, *LONG] for k in range(4)]
    check_rows(chain, run_alike(chain, texts))
    assert [list(toy.kept) for toy in chain.toys] == [[2, 3], [2, 3]]
    chain.first.limits = replace(limits_of(9), prefix_tokens=70, cache_tokens=60)
    prompts = make_prompts(1, 6, 0)
    chain.first.begin(make_group(8, prompts, 4), prompts)
    chain.run()
    assert [list(toy.kept) for toy in chain.toys] == [[3], [3]]


def test_nothing_is_kept_unless_asked_for() -> None:
    chain = Chain(2)
    check_rows(chain, run_alike(chain, [LONG, LONG]))
    assert [group.known_tokens for group in chain.toys[0].begun] == [0, 0]
    assert not any(toy.kept for toy in chain.toys)


@pytest.mark.parametrize("seed", range(6))
def test_corrupted_messages_and_room_that_runs_out_leave_shared_beginnings_right(seed: int) -> None:
    source = random.Random(seed)
    chain = Chain(3, seed=seed, packs=2, corrupts=lambda _: source.random() < 0.2)
    chain.first.limits = replace(limits_of(9, 2), prefix_tokens=80, cache_tokens=200)
    begun = []
    for number in range(12):
        prompts = torch.tensor([[*LONG[: source.randrange(16, 30)], *source.sample(range(20), 3)]])
        group = make_group(number, prompts, 5, is_packable=True, chunk_tokens=source.choice([None, 4]))
        begun.append((replace(group, shares_prefix=True), prompts))
        chain.first.begin(*begun[-1])
        for _ in range(source.randrange(40)):
            chain.deliver()
    chain.run()
    assert not chain.report.failed
    check_rows(chain, begun)
    assert any(group.known_tokens for group in chain.toys[2].begun)
    kept = [sorted(toy.kept) for toy in chain.toys]
    assert kept[0] == kept[1] == kept[2]
    assert sum(text.shape[1] for text in chain.toys[0].kept.values()) <= 80


@pytest.mark.parametrize("seed", range(12))
def test_errors_cancels_and_corruption_at_once_end_the_groups_that_they_are_of(seed: int) -> None:
    source = random.Random(seed)
    chain = Chain(3, seed=seed, packs=source.randrange(1, 4), corrupts=lambda _: source.random() < 0.15)
    fails = {source.randrange(8): source.randrange(1, 7) for _ in range(2)}

    def raises(group: int, step: int) -> None:
        if fails.get(group) == step:
            raise ValueError("no such position")

    chain.toys[source.randrange(3)].raises = raises
    begun, cancelled = [], set()
    for number in range(8):
        prompts = make_prompts(1, 4, number)
        begun.append((make_group(number, prompts, 8, is_packable=True), prompts))
        chain.first.begin(*begun[-1])
        for _ in range(source.randrange(30)):
            chain.deliver()
        if source.random() < 0.3:
            cancelled.add(source.randrange(number + 1))
            chain.first.cancel(max(cancelled))
    chain.run()
    failed = {group for group, _ in chain.report.failed.items()}
    assert failed <= set(fails)
    assert set(fails) - failed <= cancelled
    check_rows(chain, [one for one in begun if one[0].id not in failed | cancelled])
    assert sorted({*chain.report.ended, *failed}) == list(range(8))
    assert not any(toy.caches for toy in chain.toys)
    assert not any(wire.messages or wire.kept for wire in chain.wires)


def test_a_pack_of_a_group_that_has_not_begun_is_a_violation() -> None:
    chain, _ = sharing_chain(2, 0)
    pack = Message(Kind.PACK, FIRST_PACK, 0, torch.zeros(1, 1, dtype=torch.int64), parts=(Part(3, 1, 1),))
    with pytest.raises(TransportError, match="a pack has a step of group 3, which has not begun"):
        chain.followers[0].take(pack)


def test_a_prompt_that_fails_while_the_chain_drains_is_waited_for_no_longer() -> None:
    # Nothing was under way any more, so nothing led to another look: the migration waited for ever.
    chain = Chain(2)

    def raises(group: int, step: int) -> None:
        if (group, step) == (0, 0):
            raise ValueError("no")

    chain.toys[0].raises = raises
    prompts = make_prompts(1, 4, 1)
    chain.first.begin(make_group(0, prompts, 3, chunk_tokens=2), prompts)
    chain.first.advance()
    chain.first.drain()
    while chain.first.has_work:
        chain.first.advance()
    assert chain.report.failed == {0: ("request", "toy: ValueError: no")}
    assert chain.report.held_back == []


@settings(max_examples=100, deadline=None)
@given(batches, st.integers(1, 4), st.integers(1, 4), st.integers(0, 80), st.integers(0, 99))
def test_a_drained_chain_goes_on_with_its_caches_on_other_stages(
    batch: list[tuple[int, int, int, int | None, int, bool]], stages: int, others: int, delivered: int, seed: int
) -> None:
    chain, groups = Chain(stages, most_groups=4, packs=2, seed=seed, corrupts=lambda _: False), []
    for number, (rows, tokens, new_tokens, chunk_tokens, draft_tokens, is_packable) in enumerate(batch):
        prompts = make_prompts(rows, tokens, seed + number)
        group = make_group(number, prompts, new_tokens, (3,), chunk_tokens, draft_tokens, is_packable)
        group = replace(group, is_recorded=(seed + number) % 2 == 0)
        groups.append((group, prompts))
        chain.begin(group, prompts)
    for _ in range(delivered):
        chain.deliver()
    chain.first.drain()
    chain.first.advance()
    while chain.deliver():
        chain.first.advance()
    held_back = chain.report.held_back
    assert held_back is not None
    assert not any(wire.messages for wire in chain.wires)
    assert not set(held_back) & set(chain.report.ended)
    for group in held_back:
        chain.first.cancel(group)  # ignored: the next session cancels it
    after = Chain(others, most_groups=4, packs=2, seed=seed)
    for group, prompts in groups:
        if group.id in chain.report.ended:
            continue
        got = chain.report.got.get(group.id, [])
        assert bool(got) == (group.id in held_back)
        again, x = with_tokens(group, prompts, got)
        if got:
            again = with_caches(again)
            known = [torch.cat(toy.caches[group.id], dim=1) for toy in chain.toys]
            # Behind what is known there may be guesses that were wrong.
            assert all(torch.equal(one[:, : again.known_tokens], x[:, :-1]) for one in known)
            for toy in after.toys:
                toy.moved[group.id] = x[:, :-1]
        after.begin(again, x)
    after.run()
    for group, prompts in groups:
        tokens = [*chain.report.got.get(group.id, []), *after.report.got.get(group.id, [])]
        rows = torch.cat([prompts, *(got[:, None] for got in tokens)], dim=1).tolist()
        assert rows == generate_by_rows(prompts.tolist(), group.max_new_tokens, (3,))
    assert sorted([*chain.report.ended, *after.report.ended]) == [group.id for group, _ in groups]
    assert not any(toy.moved for toy in after.toys)
