"""Inter-satellite links: the 28 patterns of twelve satellites, the +grid, nearest neighbours against all pairs."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import numpy.typing as npt
import pytest

from orbitsplit import Node, leo
from orbitsplit.leo._orbits.topology import pairs_within

NODE = Node("any", 8_000_000_000, slowdown=1.0)


def permanent(constellation: leo.Constellation) -> npt.NDArray[np.bool_]:
    """Return which pairs [N, N] see each other over a whole revolution, every 20 s."""
    end = constellation.epoch + timedelta(seconds=leo.period_s(500))
    positions = constellation.positions(leo.Times.span(constellation.epoch, end, 20))
    return np.array([leo.line_of_sight(one[None], positions).all(axis=1) for one in positions])


def connected(links: npt.NDArray[np.bool_]) -> bool:
    reached, fresh = {0}, [0]
    while fresh:
        new = set(np.flatnonzero(links[fresh.pop()]).tolist()) - reached
        reached |= new
        fresh += new
    return len(reached) == len(links)


def test_three_of_the_28_patterns_of_twelve_satellites() -> None:
    """Every phasing of 1, 2, 3, 4, 6 and 12 planes: in three any pair at all sees each other all the time, 80 km above
    the Earth; there the permanent links are one ring of all twelve. In the other 25 no link is permanent."""
    with_links = []
    for planes in (1, 2, 3, 4, 6, 12):
        for phasing in range(planes):
            pattern = leo.walker_delta(12, planes, phasing, altitude_km=500, inclination_deg=53)
            links = permanent(pattern) & ~np.eye(12, dtype=bool)
            if links.any():
                with_links.append((planes, phasing))
                assert links.sum(axis=1).tolist() == [2] * 12
                assert connected(links)
    assert with_links == [(1, 0), (12, 0), (12, 11)]


def test_grid_of_a_single_plane_is_a_ring() -> None:
    ring = leo.walker_delta(12, 1, 0, altitude_km=500, inclination_deg=53)
    pairs, distance = ring.links(ring.epoch)
    assert sorted(map(tuple, pairs.tolist())) == sorted(tuple(sorted((k, (k + 1) % 12))) for k in range(12))
    assert distance == pytest.approx(2 * 6878.137 * np.sin(np.radians(15)), rel=2e-3)


@pytest.mark.parametrize("phasing", [0, 1, 17, 39, 71])
def test_grid_of_a_shell_has_four_links_each_and_closes(phasing: int) -> None:
    shell = leo.walker_delta(1584, 72, phasing, altitude_km=550, inclination_deg=53)
    pairs, distance = shell.links(shell.epoch)
    assert len(pairs) == 2 * 1584
    assert np.bincount(pairs.ravel()).tolist() == [4] * 1584
    plane = pairs // 22
    across = plane[:, 0] != plane[:, 1]
    assert set(np.diff(plane[across], axis=1).ravel().tolist()) == {1, 71}
    # The seam is like any other pair of planes: nowhere further than the slots beside the nearest would be.
    assert distance[across].max() < 1300
    assert distance[~across] == pytest.approx(2 * 6928.137 * np.sin(np.pi / 22), rel=5e-3)


def test_grid_of_a_star_has_no_links_over_the_seam() -> None:
    star = leo.walker_star(66, 6, 2, altitude_km=780, inclination_deg=86.4)
    pairs, _ = star.links(star.epoch + timedelta(minutes=7))
    assert set(np.diff(pairs // 11, axis=1).ravel().tolist()) <= {0, 1}
    assert len(pairs) > 66


def test_small_grids_have_no_pair_twice_and_none_with_itself() -> None:
    for total, planes in ((1, 1), (2, 1), (2, 2), (4, 2), (6, 2), (3, 3), (4, 4)):
        for phasing in range(planes):
            pairs = leo.Pattern(total, planes, phasing, 53.0).grid_pairs()
            assert (pairs[:, 0] < pairs[:, 1]).all()
            assert len({tuple(pair) for pair in pairs.tolist()}) == len(pairs)


def test_a_grid_needs_planes() -> None:
    two = leo.single("a", altitude_km=500, inclination_deg=53) + leo.single("b", altitude_km=510, inclination_deg=53)
    node = leo.Equipment(NODE, topology=leo.Grid())
    with pytest.raises(ValueError, match=r"a \+grid needs the planes of a Walker pattern"):
        two.equipped(node).links(two.epoch)


def test_pairs_within_are_all_pairs_within() -> None:
    r = np.random.default_rng(0)
    for count, distance in ((0, 1.0), (1, 1.0), (2, 1e9), (300, 900.0), (300, 5000.0), (800, 300.0), (50, 1e5)):
        positions = r.normal(size=(count, 3)) * 4000
        pairs, apart = pairs_within(positions, distance)
        every = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
        expected = {(a, b) for a in range(count) for b in range(a + 1, count) if every[a, b] <= distance}
        assert {tuple(pair) for pair in pairs.tolist()} == expected
        assert len(pairs) == len(expected)
        assert apart == pytest.approx(every[pairs[:, 0], pairs[:, 1]])


def nearest_slowly(positions: npt.NDArray[np.float64], terminals: int, limit: float) -> set[tuple[int, int]]:
    """Return what Nearest says in one sentence: all pairs in order of range, linked while both have a terminal."""
    count = len(positions)
    every = [
        (float(leo.range_km(positions[a], positions[b])), a, b)
        for a in range(count)
        for b in range(a + 1, count)
        if leo.line_of_sight(positions[a], positions[b])
    ]
    free, links = [terminals] * count, set()
    for distance, a, b in sorted(every):
        if distance <= limit and free[a] and free[b]:
            free[a] -= 1
            free[b] -= 1
            links.add((a, b))
    return links


@pytest.mark.parametrize("terminals", [1, 3, 4])
@pytest.mark.parametrize("limit", [None, 1500.0])
def test_nearest_is_all_pairs_in_order(terminals: int, limit: float | None) -> None:
    r = np.random.default_rng(terminals)
    positions = r.normal(size=(120, 3))
    positions *= r.uniform(6800, 7600, (120, 1)) / np.linalg.norm(positions, axis=1, keepdims=True)
    pairs = leo.Nearest(terminals, max_range_km=limit).pairs(positions, margin_km=80, pattern=None)
    assert {tuple(pair) for pair in pairs.tolist()} == nearest_slowly(positions, terminals, limit or np.inf)


def test_a_link_serves_once_it_was_there_for_the_acquisition_time() -> None:
    shell = leo.walker_delta(60, 6, 3, altitude_km=700, inclination_deg=70)
    for topology in (leo.Nearest(3), leo.Grid()):
        slow = type(topology)(**{**_fields(topology), "acquisition_s": 60.0})
        lost = 0
        for minute in range(0, 90, 9):
            at = shell.epoch + timedelta(minutes=minute)
            now = _links(shell, topology, at)
            held = set.intersection(*(_links(shell, topology, at - timedelta(seconds=10 * k)) for k in range(7)))
            assert _links(shell, slow, at) == held
            lost += len(now - held)
        assert lost > 0 or isinstance(topology, leo.Grid)


def test_topologies_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="terminals is 0, must be at least 1"):
        leo.Nearest(0)
    with pytest.raises(ValueError, match="max_range_km is -1"):
        leo.Nearest(max_range_km=-1)
    with pytest.raises(ValueError, match="acquisition_s is -1"):
        leo.Grid(-1)
    for values in ({"terminals": 2.5}, {"terminals": "4"}, {"max_range_km": "9"}, {"acquisition_s": None}):
        with pytest.raises(TypeError, match=f"{next(iter(values))} is .*, must be a"):
            leo.Nearest(**values)  # type: ignore[arg-type]


def _fields(topology: leo.Topology) -> dict[str, object]:
    return {name: getattr(topology, name) for name in topology.__dataclass_fields__}  # type: ignore[attr-defined]


def _links(shell: leo.Constellation, topology: leo.Topology, at: object) -> set[tuple[int, ...]]:
    pairs, _ = shell.equipped(leo.Equipment(NODE, topology=topology)).links(at)  # type: ignore[arg-type]
    return {tuple(pair) for pair in pairs.tolist()}
