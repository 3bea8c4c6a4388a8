"""Files that a report is made from, recognised by what they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orbitsplit._io.files import read_text
from orbitsplit._io.json_document import load_document
from orbitsplit._io.toml import parse_toml
from orbitsplit._io.validation import quoted
from orbitsplit._network.network import Network
from orbitsplit._planner.problem import Problem
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.trace import Trace


def open_document(path: str | Path) -> Any:
    """Return the plan, trace, problem, network, scenario or plan in time in a file; a scenario by its name, too.

    Raises:
        ValueError: The file holds something else, or is not valid; the message names it.
        OSError: The file cannot be read.
    """
    name = str(path)
    if not name.endswith((".toml", ".json")) and not Path(path).exists():
        from orbitsplit.leo import Scenario

        return Scenario.load(name)
    if not name.endswith(".toml"):
        return load_document(path, _of_json)
    text = read_text(path)
    if "constellation" not in parse_toml(text, name):
        return Network.from_toml(text, source=name)
    from orbitsplit.leo import Scenario

    return Scenario.from_toml(text, source=name)


def _of_json(document: Any) -> Any:
    found = document.get("format") if isinstance(document, Mapping) else None
    readers: dict[str | None, Callable[[Any], Any]] = {
        None: Problem.from_dict,
        "orbitsplit-plan": Plan.from_dict,
        "orbitsplit-trace": Trace.from_dict,
        "orbitsplit-timed-plan": _timed_plan,
    }
    if found not in readers:
        known = "a plan, trace, problem or plan in time"
        raise ValueError(f"a report is made of {known}, format is {quoted(found)}")
    return readers[found](document)


def _timed_plan(document: Any) -> Any:
    from orbitsplit.leo import TimedPlan

    return TimedPlan.from_dict(document)
