"""The cost of going over to another plan, against numbers by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

import orbitsplit as osp
from orbitsplit._plans.migration import (
    LOSSLESS_RATIO,
    LOSSLESS_S_PER_BYTE,
    CacheMove,
    Context,
    StageTimes,
    cache_codec,
    cache_moves,
    forecast,
    keeps_stage,
    moving_s,
    prefill_s,
    stage_times,
)

SLOW, FAST = osp.PlanLink(100.0, 0.5), osp.PlanLink(1000.0, 0.25)


def make_plan(cuts: list[int], nodes: list[str], *links: osp.PlanLink) -> osp.Plan:
    return replace(osp.Plan.manual(cuts=cuts, layers=4, nodes=nodes), links=links)


BEFORE = make_plan([1, 3], ["a", "b", "c"], SLOW, FAST)


def test_layers_move_to_their_new_owners_over_the_links_of_both_plans() -> None:
    after = make_plan([2], ["c", "d"], SLOW)
    moves = {(move.start, move.stop): move for move in cache_moves(BEFORE, after)}
    assert {ends: move.route for ends, move in moves.items()} == {
        (0, 1): ("a", "b", "c"),
        (1, 2): ("b", "c"),
        (2, 3): ("b", "c", "d"),
        (3, 4): ("c", "d"),
    }
    assert moves[0, 1].links == (SLOW, FAST)
    assert moves[0, 1].latency_s == 0.75
    # Against the direction in which the link is known, and over one that no plan knows.
    assert [move.route for move in cache_moves(BEFORE, make_plan([], ["a"]))] == [("b", "a"), ("c", "b", "a")]
    (unknown,) = cache_moves(make_plan([], ["a"]), make_plan([], ["x"]))
    assert (unknown.route, unknown.links) == (("a", "x"), (osp.PlanLink(),))
    assert cache_moves(BEFORE, BEFORE) == ()


def test_the_busiest_link_and_what_the_longest_way_adds() -> None:
    far = CacheMove(0, 2, ("a", "b", "c"), (FAST, SLOW))
    near = CacheMove(2, 3, ("b", "c"), (SLOW,))
    # b to c carries all three layers in 6 s; from a there is a delay of 0.75 s, and one layer more at 100 bytes/s.
    assert moving_s([far, near], [200.0, 200.0, 200.0]) == pytest.approx(6.0 + 0.75 + 2.0)
    assert moving_s([far], [200.0, 200.0, 200.0], code_s_per_byte=0.01) == pytest.approx(4.0 + 0.75 + 2.0 + 4.0)
    assert moving_s([], []) == 0.0


def test_prefill_is_a_makespan_of_prompts_and_replayed_tokens() -> None:
    times = StageTimes((0.1, 0.2), (0.5, 0.25))
    plan = replace(make_plan([2], ["a", "b"], SLOW), return_latency_s=0.125)
    # Stages 2 * 10 * 0.1 + 4 * 0.5 and 2 * 10 * 0.2 + 4 * 0.25, a link with 26 tokens of 50 bytes, two delays.
    group = Context(rows=2, tokens=13, replayed=3)
    assert prefill_s(plan, [group], times, 50.0) == pytest.approx(4.0 + 5.0 + 13.0 + 0.625)
    assert prefill_s(plan, [group] * 3, times, 50.0) == pytest.approx(4.0 + 5.0 + 13.0 + 0.625 + 2 * 13.0)
    assert prefill_s(plan, [], times, 50.0) == 0.0


def test_the_way_that_is_sooner_is_chosen() -> None:
    after, times = make_plan([2], ["a", "b"], FAST), StageTimes((0.01, 0.01), (0.001, 0.001))
    contexts = [Context(rows=1, tokens=10)]
    small = forecast(BEFORE, after, contexts, [10.0] * 4, times, 8.0)
    # Layer 1 goes from b to a, layer 3 from c to b.
    assert small.moves
    assert small.moved_bytes == 20
    assert small.moved_s == pytest.approx((0.01 + 0.25) + (0.002 + 0.25))
    assert not forecast(BEFORE, after, contexts, [1e6] * 4, times, 8.0).moves
    unmovable = forecast(BEFORE, after, contexts, None, times, 8.0)
    assert (unmovable.moves, unmovable.moved_bytes, unmovable.seconds) == (False, 0, small.prefill_s)


def test_what_is_made_again_in_any_case_counts_both_ways() -> None:
    # Prompts with images counted as nothing.
    after, times = make_plan([2], ["a", "b"], FAST), StageTimes((0.01, 0.01), (0.001, 0.001))
    contexts, again = [Context(rows=1, tokens=10)], [Context(rows=2, tokens=50, replayed=5)]
    found = forecast(BEFORE, after, contexts, [10.0] * 4, times, 8.0, again)
    moved = forecast(BEFORE, after, contexts, [10.0] * 4, times, 8.0)
    assert moved.moved_s is not None
    steps = prefill_s(after, [Context(1, 0)], times, 8.0)
    assert found.moved_s == pytest.approx(moved.moved_s - steps + prefill_s(after, [Context(1, 0), *again], times, 8.0))
    assert found.prefill_s == pytest.approx(prefill_s(after, [*contexts, *again], times, 8.0))
    assert forecast(BEFORE, after, [], [], times, 8.0, again).seconds == pytest.approx(
        prefill_s(after, again, times, 8.0)
    )


def test_compression_is_chosen_where_a_link_is_slow_enough() -> None:
    limit = (1 - 1 / LOSSLESS_RATIO) / LOSSLESS_S_PER_BYTE
    assert cache_codec("bfloat16", [osp.PlanLink(), osp.PlanLink(0.9 * limit)]) == "lossless_bf16"
    assert cache_codec("bfloat16", [osp.PlanLink(1.1 * limit)]) == "raw"
    assert cache_codec("bfloat16", []) == "raw"
    assert cache_codec("float32", [osp.PlanLink(1.0)]) == "raw"


def test_a_stage_is_kept_with_the_same_layers_weights_and_device() -> None:
    after = make_plan([2, 3], ["a", "b", "c"], SLOW, FAST)
    assert [keeps_stage(stage, BEFORE, after) for stage in after.stages] == [False, False, True]
    assert not keeps_stage(after.stages[2], BEFORE, replace(after, dtype="bfloat16"))


def test_without_a_prediction_measured_times_are_spread_over_the_layers() -> None:
    times = stage_times(make_plan([2], ["a", "b"], SLOW), step_s=0.6, prompt_token_s=None)
    assert times == StageTimes((0.3, 0.3), (0.3, 0.3))
    assert stage_times(BEFORE, step_s=None, prompt_token_s=0.6).prompt_token_s == pytest.approx((0.2, 0.2, 0.2))
