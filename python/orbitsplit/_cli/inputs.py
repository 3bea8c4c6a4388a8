"""Input files of the commands, read and checked before modules are imported that take seconds, such as torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar

import orbitsplit as osp
from orbitsplit._io.files import read_text
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
    """Return the network in a file, or the sample of this name if there is no such file.

    If a scenario has the name instead, the error says how to write its network.
    """
    try:
        return load(osp.Network, path)
    except FileNotFoundError:
        if path.name == str(path) and (resources.files("orbitsplit") / "networks" / f"{path}.toml").is_file():
            return osp.Network.sample(str(path))
        # Looked up as a file, because orbitsplit.leo needs sgp4.
        scenarios = resources.files("orbitsplit") / "leo" / "scenarios"
        if path.name != str(path) or path.suffix:
            raise
        if not (scenarios / f"{path}.toml").is_file():
            files = (resources.files("orbitsplit") / "networks").iterdir()
            samples = listed(sorted(file.name.removesuffix(".toml") for file in files))
            raise FileNotFoundError(
                f"there is no network file {quoted(str(path))}, and no sample of this name: {samples}"
            ) from None
        raise ValueError(
            f"there is no network file {quoted(str(path))}; `orbitsplit leo {path} -o FILE` writes the network"
            " of the scenario of this name"
        ) from None


def weight_options(
    texts: Sequence[str], codebook: osp.Codebook | None, models: Mapping[str, str] | None = None
) -> dict[str, osp.WeightOption]:
    """Return the weights that `--weights NAME=PROFILE` gives, with `models` in place of the profiles' own.

    The codebook knows what they lose. Raises ValueError if it does not, or there is none.
    """
    options = {}
    for name, path in _pairs("--weights", texts, "PROFILE").items():
        if codebook is None:
            raise ValueError(f"--weights {name} needs --codebook, which has what these weights lose")
        if name not in codebook.weights:
            has = f"it has {listed(codebook.weights)}" if codebook.weights else "and none of any others"
            raise ValueError(f"codebook {codebook.hex_id} has no losses of weights {quoted(name)}, {has}")
        profile, loss = load(osp.ModelProfile, Path(path)), codebook.weights[name].loss
        options[name] = osp.WeightOption(profile=profile, loss=loss, model=(models or {}).get(name))
    return options


def weight_models(texts: Sequence[str]) -> dict[str, str]:
    """Return the models that `--weight-model NAME=MODEL` gives. Raises as `model_of` where there is none."""
    models = _pairs("--weight-model", texts, "MODEL")
    for model in models.values():
        find_model(model)
    return models


def load_plan(path: Path, models: Sequence[str], weights: Sequence[str]) -> osp.Plan:
    """Return the plan in a file, with the models of `--weight-model`, and check that those of its stages are there.

    Raises ValueError if neither the plan nor `--weights` has weights of such a name.
    """
    plan, given = load(osp.Plan, path), weight_models(models)
    for name in given.keys() - plan.weight_models.keys() - _pairs("--weights", weights, "PROFILE").keys():
        known = listed(plan.weight_models) if plan.weight_models else "no weights but its model's"
        raise ValueError(f"--weight-model {name} is of no weights of the plan, which has {known}")
    own = {name: given.get(name, model) for name, model in plan.weight_models.items()}
    plan = replace(plan, weight_models=own)
    for name in weights_chosen(plan):
        find_model(plan.weight_models[name])
    return plan


def _pairs(option: str, texts: Sequence[str], what: str) -> dict[str, str]:
    """Return the values of an option NAME=VALUE by name. Raises ValueError for another form, and a name twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, is_pair, value = text.partition("=")
        if not is_pair:
            raise ValueError(f"{option} is {quoted(text)}, expected NAME={what}")
        if name in found:
            raise ValueError(f"{option} {name} is given twice")
        found[name] = value
    return found


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


def replan_within(
    plan: osp.Plan,
    book: osp.Codebook | None,
    profile: Path | None,
    network: Path | None,
    weights: Sequence[str],
    models: Sequence[str],
) -> Callable[[float], osp.Plan] | None:
    """Return a function from a loss budget to a plan for the same workload, None without profile and network.

    Raises ValueError for a part of what is needed.
    """
    if profile is None and network is None and not weights:
        return None
    if profile is None or network is None or book is None:
        raise ValueError("to compute a new plan, give --profile, --network and --codebook")
    if (chosen := weights_chosen(plan)) and not weights:
        raise ValueError(
            f"stages of the plan have weights of their own, {listed(chosen)}: give --weights NAME=PROFILE too"
        )
    options = weight_options(weights, book, weight_models(models))
    of_model, nodes = load(osp.ModelProfile, profile), load_network(network)
    objective = "latency" if plan.prediction is None else plan.prediction.objective
    return lambda budget: osp.plan(
        of_model, nodes, plan.workload, codebook=book, loss_budget=budget, objective=objective, weights=options
    )


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Paths of the files that `run` and `serve` take, and the name of the model."""

    plan: Path
    model: str | None
    codebook: Path | None
    links: Path | None
    profile: Path | None
    network: Path | None
    weights: Sequence[str] = ()
    weight_models: Sequence[str] = ()

    def load(self) -> RunInputs:
        """Return what is in the files. Raises ValueError or OSError for what cannot be run."""
        plan = load_plan(self.plan, self.weight_models, self.weights)
        model = model_of(plan, self.model)
        codebook = load_optional(osp.Codebook, self.codebook)
        if plan.codebook is not None and codebook is None:
            raise ValueError(f"the plan needs codebook {plan.codebook}: give it with --codebook")
        if plan.codebook is not None and codebook is not None and codebook.hex_id != plan.codebook:
            raise ValueError(f"the plan needs codebook {plan.codebook}, {self.codebook} is codebook {codebook.hex_id}")
        conditions = load_optional(osp.LinkConditions, self.links)
        replan = self._replanner(plan, codebook, conditions)
        if replan is None and conditions is not None:
            conditions.nodes_left_out(stage.node for stage in plan.stages)
        return RunInputs(plan, model, codebook, conditions, replan)

    def _replanner(
        self, plan: osp.Plan, codebook: osp.Codebook | None, conditions: osp.LinkConditions | None
    ) -> Callable[..., Any] | None:
        """Return what makes the plan after a loss, None without profile and network."""
        if self.profile is None and self.network is None:
            if self.weights:
                raise ValueError("--weights is for plans after a loss: give --profile and --network")
            return None
        if self.profile is None or self.network is None:
            raise ValueError("to resume after a loss, give --profile and --network")
        if (chosen := weights_chosen(plan)) and not self.weights:
            raise ValueError(
                f"stages of the plan have weights of their own, {listed(chosen)}: to resume after a loss, give their"
                " profiles with --weights NAME=PROFILE, and --codebook"
            )
        profile, network = load(osp.ModelProfile, self.profile), load_network(self.network)
        if conditions is not None:
            conditions.check(node.name for node in network.nodes)
        options = weight_options(self.weights, codebook, weight_models(self.weight_models))
        return osp.replanner(profile, network, codebook=codebook, **({"weights": options} if options else {}))


@dataclass(frozen=True)
class RunInputs:
    """A plan and what it runs with; `replan` returns the plan after a loss, None: a loss ends the run."""

    plan: osp.Plan
    model: str
    codebook: osp.Codebook | None
    conditions: osp.LinkConditions | None
    replan: Callable[..., Any] | None


def api_key_of(key: str | None, file: Path | None) -> str | None:
    """Return the key given, or that of a file without the white space around it; None without either.

    Raises ValueError where both are given or the file is empty.
    """
    if file is None:
        return key
    if key is not None:
        raise ValueError("--api-key-file is given beside --api-key or ORBITSPLIT_API_KEY: one of them")
    key = read_text(file).strip()
    if not key:
        raise ValueError(f"{file} is empty, expected the key that clients must send")
    return key
