"""A batch in flight: tokens in order, its end, and its rest after a loss."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from torch import Tensor

from orbitsplit import TransportError
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._parent.generation import Generation, GroupState
from orbitsplit.runtime._parent.stopping import Stopping

PAD = 9


class Heard:
    """The calls that a caller got."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self.ends: list[BaseException | None] = []
        self.cancelled: list[int] = []

    def on_tokens(self, tokens: Tensor) -> None:
        self.steps.append(tokens.tolist())


def make_generation() -> tuple[Generation, Heard]:
    """Two groups, of two rows and of one."""
    heard = Heard()
    states = [
        GroupState(Group(4, 2, 2, None, 6, (7,), PAD), torch.tensor([[1, 2], [3, 4]])),
        GroupState(Group(5, 1, 2, None, 6, (7,), PAD), torch.tensor([[5, 6]])),
    ]
    generation = Generation(
        states,
        pad_token_id=PAD,
        on_tokens=heard.on_tokens,
        on_end=heard.ends.append,
        send_cancel=heard.cancelled.append,
    )
    return generation, heard


def test_steps_are_handed_out_when_all_groups_have_made_them() -> None:
    generation, heard = make_generation()
    generation.take(4, [10, 11])
    generation.take(4, [12, 13])
    assert heard.steps == []
    generation.take(5, [14])
    assert heard.steps == [[10, 11, 14]]
    generation.end(5, 0)  # from now on its row is padding
    assert heard.steps == [[10, 11, 14], [12, 13, PAD]]
    generation.take(4, [15, 16])
    generation.end(4, 0)
    assert heard.steps[2:] == [[15, 16, PAD]]
    assert heard.ends == [None]
    assert generation.is_over
    assert generation.result().tolist() == [[1, 2, 10, 12, 15], [3, 4, 11, 13, 16], [5, 6, 14, PAD, PAD]]


def test_a_failure_keeps_the_tokens_so_far_and_comes_once() -> None:
    generation, heard = make_generation()
    generation.take(4, [10, 11])
    generation.fail(TransportError("it broke", kind="link", link=("a", "b")))
    generation.fail(TransportError("again"))
    with pytest.raises(TransportError, match="it broke") as caught:
        generation.result()
    assert (caught.value.kind, caught.value.link) == ("link", ("a", "b"))
    assert caught.value.tokens.tolist() == [[1, 2, 10], [3, 4, 11], [5, 6, PAD]]
    assert heard.ends == [caught.value]


def test_a_limit_of_time_keeps_the_tokens_so_far_and_does_not_end_it() -> None:
    generation, heard = make_generation()
    generation.take(5, [10])
    with pytest.raises(TransportError, match=r"did not finish generating within 0\.01 s") as caught:
        generation.result(0.01)
    assert caught.value.kind == "timeout"
    assert caught.value.tokens.shape == (3, 3)
    assert heard.ends == []


def test_what_resumes_has_the_tokens_in_its_prompts() -> None:
    generation, _ = make_generation()
    generation.take(4, [10, 7])  # the second row ends
    generation.take(4, [11, PAD])
    generation.end(5, 0)
    ((group, x),) = (state.remaining() for state in generation.unfinished())
    assert (group.id, group.tokens, group.max_new_tokens, group.ended_rows) == (4, 4, 4, (1,))
    assert x.tolist() == [[1, 2, 10, 11], [3, 4, 7, PAD]]
    generation.take(4, [12, PAD])
    generation.end(4, 1)
    assert generation.result().tolist() == [[1, 2, 10, 11, 12], [3, 4, 7, PAD, PAD], [5, 6, PAD, PAD, PAD]]


def test_a_group_whose_last_token_came_is_complete_though_its_end_was_lost() -> None:
    # It was restarted with no token left to make, which ended the pipeline.
    generation, _ = make_generation()
    first, second = generation.states.values()
    assert [state.is_complete for state in (first, second)] == [False, False]
    for step in range(6):
        generation.take(4, [20 + step, 30 + step])
    assert [state.is_complete for state in (first, second)] == [True, False]
    generation.take(5, [7])  # its only row has ended
    assert [state.is_complete for state in (first, second)] == [True, True]


def test_an_error_of_the_callers_own_function_ends_its_batch_and_nothing_else() -> None:
    # It ended the thread that hands out tokens, and every caller waited for ever.
    cancelled: list[int] = []
    ends: list[BaseException | None] = []

    def fails(_tokens: Tensor) -> None:
        raise BrokenPipeError("nobody reads")

    state = GroupState(Group(4, 1, 2, None, 6, (7,), PAD), torch.tensor([[1, 2]]))
    generation = Generation([state], on_tokens=fails, on_end=ends.append, send_cancel=cancelled.append)
    generation.take(4, [10])
    assert cancelled == [4]
    with pytest.raises(BrokenPipeError, match="nobody reads"):
        generation.result(timeout_s=1)
    generation.take(4, [11])
    generation.end(4, 0)
    assert [str(error) for error in ends] == ["nobody reads"]


def test_cancelling_asks_for_the_end_of_what_runs() -> None:
    generation, heard = make_generation()
    generation.end(5, 0)
    generation.cancel()
    assert heard.cancelled == [4]
    generation.end(4, 0)
    generation.cancel()
    assert heard.cancelled == [4]
    assert generation.result().tolist() == [[1, 2], [3, 4], [5, 6]]


def test_outputs_of_a_forward_are_joined_by_name() -> None:
    generation = Generation(GroupState(Group(k, 1, 1, None, 0), {"x": torch.ones(1)}) for k in (0, 1))
    generation.end(1, 0, {"logits": torch.tensor([[2.0]])})
    generation.end(0, 0, {"logits": torch.tensor([[1.0]])})
    generation.wait()
    assert generation.outputs()["logits"].tolist() == [[1.0], [2.0]]


def test_two_threads_that_end_a_batch_at_once_end_it_once() -> None:
    # Both saw that it was not over: the caller was called twice, and not with the error that the result raised.
    both = threading.Barrier(2)

    class Meeting(threading.Event):
        def is_set(self) -> bool:
            value = super().is_set()
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.2)  # in vain where only one may come here at a time
            return value

    ends: list[BaseException | None] = []
    generation = Generation([GroupState(Group(0, 1, 1, None, 6), torch.tensor([[1]]))], on_end=ends.append)
    generation._over = Meeting()
    first, second = (threading.Thread(target=generation._finish, args=(ValueError(name),)) for name in "ab")
    first.start()
    second.start()
    first.join(10)
    second.join(10)
    assert len(ends) == 1
    assert generation._error is ends[0]


def test_nothing_is_returned_that_was_not_asked_for() -> None:
    generation, _ = make_generation()
    generation.take(4, [10, 11])
    generation.take(5, [14])
    assert generation.scores() == generation.logits() == ()
    assert generation.logprobs() == [[], [], []]
    assert generation.prompt_logprobs() == []


def test_a_criterion_ends_its_row_and_with_the_last_row_the_batch() -> None:
    """Tokens that come after the end, from stages that do not know of it yet, are dropped."""
    steps: list[list[int]] = []
    cancelled: list[int] = []
    states = [
        GroupState(Group(4, 2, 2, None, 6, (7,), PAD), torch.tensor([[1, 2], [3, 4]])),
        GroupState(Group(5, 1, 2, None, 6, (7,), PAD), torch.tensor([[5, 6]])),
    ]
    stopping = Stopping(
        lambda ids, _scores: ids[:, -1] >= 20,
        torch.cat([state.x for state in states]),
        eos_token_ids=(7,),
        pad_token_id=PAD,
    )
    generation = Generation(
        states,
        pad_token_id=PAD,
        on_tokens=lambda tokens: steps.append(tokens.tolist()),
        send_cancel=cancelled.append,
        stopping=stopping,
    )
    generation.take(4, [10, 20])
    generation.take(5, [7])
    assert (steps, cancelled) == ([[10, 20, 7]], [])
    generation.take(4, [21, 11])
    assert cancelled == []  # the other group has not made this step
    generation.end(5, 0)
    assert (steps, cancelled) == ([[10, 20, 7], [21, PAD, PAD]], [4])
    generation.take(4, [12, 13])
    generation.end(4, 0)
    assert generation.result(1.0).tolist() == [[1, 2, 10, 21], [3, 4, 20, PAD], [5, 6, 7, PAD]]
    assert generation.new_tokens == 2
    assert len(steps) == 2
