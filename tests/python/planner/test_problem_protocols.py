"""What the Numba planner declares of a problem is what a problem has, by the same names."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from orbitsplit._numba.planner import problem as protocols
from orbitsplit._planner import problem as records

# Fields that are kept for the user, which no planner reads.
NOT_READ = {"Problem": {"name", "expected"}}

DECLARED = {
    name: protocol
    for name, protocol in vars(protocols).items()
    if inspect.isclass(protocol)
    and getattr(protocol, "_is_protocol", False)
    and protocol.__module__ == protocols.__name__
}


def attributes(protocol: type) -> set[str]:
    return {name for name, value in vars(protocol).items() if isinstance(value, property)}


def test_every_part_of_a_problem_is_declared() -> None:
    assert set(DECLARED) - {"Record"} == {"ProblemNode", "Level", "WeightLevel", "ExternalLink", "Pins", "Problem"}


@pytest.mark.parametrize("name", sorted(set(DECLARED) - {"Record"}))
def test_a_declaration_has_the_fields_of_the_record(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(getattr(records, name))}
    assert attributes(DECLARED[name]) == fields - NOT_READ.get(name, set())
