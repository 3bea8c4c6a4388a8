"""The front of time per token against throughput: by enumeration of all groups, rows and guesses."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

import orbitsplit as osp
from tests.judges.settings import Setting, every_split, seconds
from tests.support.setting_cases import LAYERS, NODES, PROMPT, Case, make_case

NEW, SEQUENCES = 6, 6
SPLITS = list(every_split(NODES, LAYERS))


def workload(acceptance: float = 0.0, sequences: int = SEQUENCES) -> osp.Workload:
    return osp.Workload(micro_batches=sequences, prompt_tokens=PROMPT, new_tokens=NEW, acceptance=acceptance)


def every_point(case: Case, acceptance: float, sequences: int = SEQUENCES) -> list[tuple[float, float]]:
    """Seconds per token and tokens per second of the best split of each setting."""
    points = []
    for rows in range(1, sequences + 1):
        for groups in range(1, sequences // rows + 1):
            for guesses in range(8) if rows == 1 and acceptance else (0,):
                setting = Setting(groups, rows, guesses=guesses)
                time_s = min(
                    seconds(split, case.model, case.machines, setting, NEW, acceptance)["time_per_token"]
                    for split in SPLITS
                )
                points.append((time_s, groups * rows / time_s))
    return points


def undominated(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    def is_dominated(one: tuple[float, float], other: tuple[float, float]) -> bool:
        close = 1e-9
        is_no_worse = other[0] <= one[0] * (1 + close) and other[1] >= one[1] * (1 - close)
        return is_no_worse and (other[0] < one[0] * (1 - close) or other[1] > one[1] * (1 + close))

    left = sorted(one for one in points if not any(is_dominated(one, other) for other in points))
    return [one for k, one in enumerate(left) if k == 0 or one[1] > left[k - 1][1] * (1 + 1e-9)]


def test_the_front_is_that_of_the_enumeration(backend: str) -> None:
    for seed, acceptance in [(0, 0.0), (1, 0.0), (2, 0.7), (3, 0.0), (4, 0.9)] if backend == "native" else [(1, 0.0)]:
        case = make_case(seed)
        front = osp.pareto(case.profile, over="latency", network=case.network, workload=workload(acceptance))
        found = [(point.time_per_token_s, point.tokens_per_s) for point in front.points]
        assert front.is_complete
        expected = undominated(every_point(case, acceptance))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other)


def test_each_plan_is_what_its_point_says() -> None:
    case = make_case(4)
    front = osp.pareto(case.profile, over="latency", network=case.network, workload=workload(0.5))
    assert len(front.points) > 1
    for point in front.points:
        plan = point.plan
        given = plan.workload
        assert given.sequences <= SEQUENCES
        assert plan.prediction is not None
        assert plan.prediction.objective == "time_per_token"
        again = osp.plan(
            case.profile,
            case.network,
            given,
            draft_tokens=plan.draft_tokens,
            chunk_tokens=None,
            objective="time_per_token",
        )
        assert again.prediction is not None
        by_token = again.prediction.token_step_s / again.prediction.tokens_per_step
        assert point.time_per_token_s == pytest.approx(by_token)
        assert point.time_per_token_s == pytest.approx(plan.prediction.token_step_s / plan.prediction.tokens_per_step)
        assert point.tokens_per_s == pytest.approx(given.sequences / by_token)


def test_the_first_point_is_the_soonest_token_and_the_last_the_most_tokens() -> None:
    case = make_case(3)
    front = osp.pareto(case.profile, over="latency", network=case.network, workload=workload())
    times = [point.time_per_token_s for point in front.points]
    tokens = [point.tokens_per_s for point in front.points]
    assert times == sorted(times)
    assert tokens == sorted(tokens)
    points = every_point(case, 0.0)
    assert times[0] == pytest.approx(min(time_s for time_s, _ in points))
    assert tokens[-1] == pytest.approx(max(rate for _, rate in points))
    assert times[0] == pytest.approx(min(time_s for time_s, _ in every_point(case, 0.0, sequences=1)))


def test_points_that_are_close_are_left_out() -> None:
    case = make_case(3)
    exact, coarse = (
        osp.pareto(case.profile, "latency", network=case.network, workload=workload(), resolution=part).points
        for part in (0.0, 0.4)
    )
    rates = [point.tokens_per_s for point in coarse]
    assert 1 < len(coarse) < len(exact)
    assert all(later > 1.4 * earlier for earlier, later in itertools.pairwise(rates))
    assert set(rates) < {point.tokens_per_s for point in exact}


def test_more_sequences_than_fit_are_not_in_flight() -> None:
    # Keys and values of three sequences fit the nodes together, those of four do not.
    case = make_case(1, fixed=20.0)
    layers = tuple(replace(layer, kv_bytes_per_token=1) for layer in case.profile.layers)
    nodes = tuple(replace(node, memory_bytes=2 * (10 + 3 * (PROMPT + NEW))) for node in case.network.nodes)
    front = osp.pareto(
        replace(case.profile, layers=layers),
        over="latency",
        network=replace(case.network, nodes=nodes),
        workload=workload(),
    )
    assert max(point.plan.workload.sequences for point in front.points) == 3
    assert front.is_complete


def test_a_front_is_data_and_text() -> None:
    case = make_case(2)
    front = osp.pareto(case.profile, over="latency", network=case.network, workload=workload(0.7))
    data = json.loads(json.dumps(front.to_dict()))
    assert (data["over"], data["is_complete"]) == ("latency", True)
    for record, point, line in zip(data["points"], front.points, str(front).splitlines(), strict=True):
        assert osp.Plan.from_dict(record["plan"]) == point.plan
        given = point.plan.workload
        assert f"{point.tokens_per_s:.4g} tokens/s: {given.micro_batches} x {given.batch_size}" in line
        assert (point.plan.draft_tokens is None) == ("guesses" not in line)


def test_a_search_that_is_stopped_says_so() -> None:
    case = make_case(2)
    front = osp.pareto(case.profile, over="latency", network=case.network, workload=workload(), max_labels=1)
    assert not front.is_complete
    assert "incomplete" in str(front)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"workload": replace(workload(), new_tokens=1)}, ValueError, "has 1 new tokens, the time of a token needs at"),
        ({"workload": None}, TypeError, "workload is None, must be a Workload"),
        ({"network": None}, TypeError, "network is None, must be a Network"),
        ({"resolution": 1.0}, ValueError, "resolution is 1.0, must be at least 0 and below 1"),
        ({"gap": 0.1}, ValueError, "gap is 0.1, must be 0"),
        ({"depth": 3}, TypeError, "depth"),
        ({"draft_tokens": "few"}, ValueError, "draft_tokens is 'few'"),
    ],
)
def test_what_is_missing_or_wrong_is_named(changes: dict[str, object], error: type[Exception], message: str) -> None:
    case = make_case(0)
    given = {"network": case.network, "workload": workload(), **changes}
    with pytest.raises(error, match=message):
        osp.pareto(case.profile, over="latency", **given)  # type: ignore[call-overload]


def test_the_two_kinds_of_fronts_are_told_apart() -> None:
    case = make_case(0)
    problem = osp.build_problem(case.profile, case.network, workload())
    with pytest.raises(ValueError, match="over is 'latency', which divides sequences into rows: give a profile"):
        osp.pareto(problem, over="latency", network=case.network, workload=workload())  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="must be a Problem"):
        osp.pareto(case.profile)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r'pareto\(\) got workload=, which is for over="latency" alone'):
        osp.pareto(problem, workload=workload())  # type: ignore[call-overload]
