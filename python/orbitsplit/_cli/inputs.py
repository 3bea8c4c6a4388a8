"""Input files of the commands, read and checked before modules are imported that take seconds, such as torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar

import orbitsplit as osp
from orbitsplit._io.validation import listed, quoted
from orbitsplit._models.model_path import find_model
from orbitsplit._plans.weight_options import weights_chosen

from .logs import log

Loaded = TypeVar("Loaded", covariant=True)


class Loadable(Protocol[Loaded]):
    """A class whose objects are read from files."""

    def load(self, path: Path, /) -> Loaded:
        """Return the object in a file."""


def load(kind: Loadable[Loaded], path: Path) -> Loaded:
    """Return the object in a file. Raises what its `load` raises."""
    loaded = kind.load(path)
    log.info("read %s", path)
    return loaded


def load_optional(kind: Loadable[Loaded], path: Path | None) -> Loaded | None:
    """Return the object in a file, None if there is no file."""
    return None if path is None else load(kind, path)


def load_network(path: Path) -> osp.Network:
    """Return the network in a file; if a scenario has its name instead, the error says how to write its network."""
    try:
        return load(osp.Network, path)
    except FileNotFoundError:
        # Looked up as a file, because orbitsplit.leo needs sgp4.
        scenarios = resources.files("orbitsplit") / "leo" / "scenarios"
        if path.name != str(path) or not (scenarios / f"{path}.toml").is_file():
            raise
        raise ValueError(
            f"there is no network file {quoted(str(path))}; `orbitsplit leo {path} -o FILE` writes the network"
            " of the scenario of this name"
        ) from None


def weight_options(texts: Sequence[str], codebook: osp.Codebook | None) -> dict[str, osp.WeightOption]:
    """Return the weights that `--weights NAME=PROFILE` gives; the codebook knows what they lose.

    Raises ValueError if it does not, or there is none.
    """
    options = {}
    for text in texts:
        name, is_pair, path = text.partition("=")
        if not is_pair:
            raise ValueError(f"--weights is {quoted(text)}, expected NAME=PROFILE")
        if codebook is None:
            raise ValueError(f"--weights {name} needs --codebook, which has what these weights lose")
        if name not in codebook.weights:
            has = f"it has {listed(codebook.weights)}" if codebook.weights else "and none of any others"
            raise ValueError(f"codebook {codebook.hex_id} has no losses of weights {quoted(name)}, {has}")
        if name in options:
            raise ValueError(f"--weights {name} is given twice")
        options[name] = osp.WeightOption(profile=load(osp.ModelProfile, Path(path)), loss=codebook.weights[name].loss)
    return options


def check_readable(paths: Iterable[Path]) -> None:
    """Raise OSError, which names the file, for one that cannot be read."""
    for path in paths:
        path.open("rb").close()


def model_of(plan: osp.Plan, model: str | None) -> str:
    """Return the model to use with a plan: the one given, or the plan's own.

    Raises ValueError if there is neither, FileNotFoundError or ValueError if it is a path where there is no model.
    """
    name = model if model is not None else plan.model
    if name is None:
        raise ValueError("the plan names no model: give one with --model")
    find_model(name)
    return name


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Paths of the files that `run` and `serve` take, and the name of the model."""

    plan: Path
    model: str | None
    codebook: Path | None
    links: Path | None
    profile: Path | None
    network: Path | None

    def load(self) -> RunInputs:
        """Return what is in the files. Raises ValueError or OSError for what cannot be run."""
        plan = load(osp.Plan, self.plan)
        model = model_of(plan, self.model)
        codebook = load_optional(osp.Codebook, self.codebook)
        if plan.codebook is not None and codebook is None:
            raise ValueError(f"the plan needs codebook {plan.codebook}: give it with --codebook")
        if plan.codebook is not None and codebook is not None and codebook.hex_id != plan.codebook:
            raise ValueError(f"the plan needs codebook {plan.codebook}, {self.codebook} is codebook {codebook.hex_id}")
        conditions = load_optional(osp.LinkConditions, self.links)
        replan = None
        if self.profile is not None or self.network is not None:
            if self.profile is None or self.network is None:
                raise ValueError("to resume after a loss, give --profile and --network")
            if chosen := weights_chosen(plan):
                raise ValueError(
                    f"stages of the plan have weights of their own, {listed(chosen)}: a run of it cannot resume after a"
                    " loss yet; leave out --profile and --network"
                )
            profile, network = load(osp.ModelProfile, self.profile), load_network(self.network)
            replan = osp.replanner(profile, network, codebook=codebook)
            if conditions is not None:
                conditions.check(node.name for node in network.nodes)
        elif conditions is not None:
            conditions.nodes_left_out(stage.node for stage in plan.stages)
        return RunInputs(plan, model, codebook, conditions, replan)


@dataclass(frozen=True)
class RunInputs:
    """A plan and what it runs with; `replan` returns the plan after a loss, None: a loss ends the run."""

    plan: osp.Plan
    model: str
    codebook: osp.Codebook | None
    conditions: osp.LinkConditions | None
    replan: Callable[..., Any] | None
