"""The public namespace: what `__all__` says is what there is, and importing it costs nothing that is not needed."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import warnings
from typing import Any

import pytest

import orbitsplit
from orbitsplit import runtime
from tests.support.paths import DATA

# The public names before the packages were given rooms, with parameters of functions and members of classes.
BEFORE: dict[str, dict[str, list[str]]] = json.loads((DATA / "public_names.json").read_text())


def test_all_is_sorted_and_everything_in_it_exists() -> None:
    assert orbitsplit.__all__ == sorted(orbitsplit.__all__)
    for name in orbitsplit.__all__:
        assert getattr(orbitsplit, name) is not None


def test_every_public_name_of_ours_is_in_all() -> None:
    mine = {
        name
        for name, value in vars(orbitsplit).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("orbitsplit")
    }
    assert mine <= set(orbitsplit.__all__)


def test_completion_shows_the_public_names_alone() -> None:
    # `leo` was missing, `Any` and `importlib` were there.
    assert dir(orbitsplit) == sorted([*orbitsplit.__all__, "flight", "leo"])
    assert dir(runtime) == sorted(runtime.__all__)
    assert {name for name in dir(orbitsplit.leo) if not name.startswith("_")} >= {"Scenario", "walker_delta"}


@pytest.mark.parametrize(("old", "new"), [("StageRun", "StageMetrics"), ("LinkRun", "LinkMetrics")])
def test_renamed_classes_are_found_with_a_warning(old: str, new: str) -> None:
    for package in (orbitsplit, runtime):
        with pytest.warns(DeprecationWarning, match=f"{old} is now .*{new}") as caught:
            assert getattr(package, old) is getattr(package, new)
        assert caught[0].filename == __file__


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'warp_drive'"):
        _ = orbitsplit.warp_drive


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return run.stdout.strip()


HEAVY = "('torch', 'transformers', 'numba', 'matplotlib', 'sgp4', 'typer', 'rich')"


def test_planning_needs_numpy_alone() -> None:
    code = f"import sys, orbitsplit; orbitsplit.plan; print([m for m in {HEAVY} if m in sys.modules])"
    assert _python(code) == "[]"


def test_an_import_loads_nothing_that_is_not_used() -> None:
    # What makes an import slow is what it loads.
    code = "import sys; before = set(sys.modules); import orbitsplit; print(*sorted(set(sys.modules) - before))"
    loaded = _python(code).split()
    assert "numpy" not in loaded
    assert [name for name in loaded if name.startswith("orbitsplit.")] == []


def test_every_name_is_that_of_its_module() -> None:
    assert set(orbitsplit._MODULES) | {"flight", "leo"} >= set(orbitsplit.__all__) - {"__version__"}
    for name, module in orbitsplit._MODULES.items():
        assert getattr(orbitsplit, name) is getattr(importlib.import_module(module, "orbitsplit"), name)


@pytest.mark.parametrize("name", ["Pipeline", "calibrate", "profile", "verify"])
def test_a_missing_extra_is_named(name: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; import orbitsplit\n"
        f"try: orbitsplit.{name}\n"
        "except ImportError as error: print(error)"
    )
    assert 'pip install "orbitsplit[models]"' in _python(code)


def _missing(value: Any, members: list[str]) -> set[str]:
    """Return which parameters of a function, or members of a class, are no longer there; old names that warn are."""
    if inspect.isclass(value):
        return {member for member in members if not hasattr(value, member) and member not in value.__annotations__}
    parameters = inspect.signature(value).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return set()  # old keywords: the tests of each function give them
    return set(members) - {parameter.name for parameter in parameters}


@pytest.mark.parametrize("namespace", BEFORE)
def test_what_was_public_before_still_is(namespace: str) -> None:
    module = importlib.import_module(namespace)
    missing: dict[str, set[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name, members in BEFORE[namespace].items():
            value = getattr(module, name)
            if members and (lost := _missing(value, members)):
                missing[name] = lost
    assert missing == {}
