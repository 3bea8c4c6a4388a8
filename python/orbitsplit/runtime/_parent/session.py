"""Parts of a session: its settings, its state, the functions that it calls."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orbitsplit._codebook.codebook import Codebook
from orbitsplit._errors import TransportError
from orbitsplit._io.validation import check_kind, listed
from orbitsplit._network.link_conditions import LinkConditions
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages.control import Ready, Setup, stage_name
from orbitsplit.runtime._messages.environment import SECRET_VARIABLE
from orbitsplit.runtime._messages.groups import Group, with_caches
from orbitsplit.runtime._messages.limits import Limits

from .arguments import boolean, integer
from .host_checks import check_devices, check_host
from .host_launcher import HostLauncher
from .hosts import Hosts
from .launcher import Launcher, LocalLauncher
from .options import Timeouts
from .recovery import Replan
from .replicas import Replicas
from .stage_models import source_hashes

Progress = Callable[[str, float], None]
# The most groups in flight that share forwards, where no memory is limited.
_MOST_SEQUENCES = 64
# The most tokens in a forward that several groups share.
_PACK_TOKENS = 32
_SECRET_BYTES = 32
# Hosts that have not joined so long after a majority of them, when a coordinator takes over, are lost.
_REJOIN_S = 3.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """The machines of a pipeline's processes: this one; or `hosts`; or some others, started by torchrun.

    The control store is served at `address`. `remote_nodes[k]` is the node of stage k if its process is not started
    here, else None. If `emulates`, links and nodes are emulated as the plan describes them.
    """

    address: str = "127.0.0.1"
    port: int = 0
    remote_nodes: tuple[str | None, ...] = ()
    emulates: bool = True
    hosts: Hosts | None = None

    def stages_here(self, stages: int) -> tuple[bool, ...]:
        """Return of each stage whether its process is started on this machine."""
        if self.hosts is not None:
            return (False,) * stages
        return tuple(node is None for node in self.remote_nodes or (None,) * stages)

    def without_our_clock(self, nodes: Iterable[str]) -> list[str]:
        """Return the nodes whose hosts cannot emulate links with the others, none where nothing is emulated."""
        return self.hosts.without_our_clock(nodes) if self.emulates and self.hosts is not None else []

    @property
    def is_replicated(self) -> bool:
        """Whether hosts keep replicas of requests, for another coordinator."""
        return self.hosts is not None and self.hosts.term is not None

    @property
    def replicas(self) -> Replicas:
        """The replicas of requests, which nothing is done with where there are no hosts of several coordinators."""
        return Replicas() if self.hosts is None else self.hosts.replicas

    def launcher(self, store_address: str, secret: str | None) -> Launcher:
        """Return what starts the processes that no other has started; on hosts, messages have a secret in any case."""
        if self.hosts is None:
            return LocalLauncher(store_address, secret)
        known = secret or os.environ.get(SECRET_VARIABLE)
        return HostLauncher(self.hosts, store_address, known or secrets.token_hex(_SECRET_BYTES))


def models_here(plan: Plan, settings: Settings) -> set[Path | str]:
    """Return the models that stages of a plan load on this machine, none if it has no stages.

    Raises TransportError of kind "host" if the machine cannot run a pipeline, or has not the devices of its stages.
    """
    deployment = settings.deployment
    check_host(len(plan.stages), deployment.address, has_hosts=deployment.hosts is not None)
    is_here = deployment.stages_here(len(plan.stages))
    stages = [stage for stage, here in zip(plan.stages, is_here, strict=False) if here]
    check_devices(stages)
    if not stages:
        return set()
    models = {plan.weight_models.get(stage.weights or "", settings.model) for stage in plan.stages}
    return models if settings.assistant is None else models | {settings.assistant}


def on_hosts(hosts: Hosts, plan: Plan, timeouts: Timeouts, emulates: bool, progress: Progress) -> Deployment:
    """Return the deployment of a plan on hosts, once those of its nodes have joined.

    Raises TransportError for hosts that do not join in time, ValueError if links are emulated between several clocks.
    """
    nodes = [stage.node for stage in plan.stages]

    def report() -> None:
        progress("waiting for hosts", 1.0 - len(hosts.absent(nodes)) / len(nodes))

    if hosts.term is None:
        hosts.wait_for(nodes, timeouts.start_s, on_poll=report)
    else:
        _wait_for_majority(hosts, nodes, timeouts, report)
    deployment = Deployment(emulates=emulates, hosts=hosts)
    if others := deployment.without_our_clock(nodes):
        raise ValueError(
            f"conditions of links cannot be emulated between machines with clocks of their own: {listed(others)} of "
            f"{listed(nodes)}"
        )
    return deployment


def _wait_for_majority(hosts: Hosts, nodes: list[str], timeouts: Timeouts, report: Callable[[], None]) -> None:
    """Wait until this coordinator works, for as long as that takes, and then for the hosts of nodes.

    Where another one has worked before, those that do not come soon are lost: the pipeline begins without them.
    """
    hosts.wait_for_majority(on_poll=report)
    is_first = hosts.term == 1
    try:
        hosts.wait_for(nodes, timeouts.start_s if is_first else _REJOIN_S, on_poll=report)
    except TransportError:
        if is_first:
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of all sessions of a pipeline; fields as the arguments of `Pipeline`.

    Raises TypeError or ValueError, naming the field, for a wrong value.
    """

    model: Path | str
    assistant: Path | str | None = None
    codebook: Codebook | str | Path | None = None
    conditions: LinkConditions | None = None
    exact_resume: bool = True
    most_groups: int | None = None
    max_batch_tokens: int | None = None
    prefix_cache_tokens: int = 0
    secret: str | None = field(default=None, repr=False)
    timeouts: Timeouts = field(default_factory=Timeouts)
    deployment: Deployment = field(default_factory=Deployment)

    def __post_init__(self) -> None:
        if self.conditions is not None:
            check_kind("conditions", self.conditions, LinkConditions)
        object.__setattr__(self, "exact_resume", boolean("exact_resume", self.exact_resume))
        for name in ("most_groups", "max_batch_tokens"):
            if (most := getattr(self, name)) is not None:
                object.__setattr__(self, name, integer(name, most, least=1))
        object.__setattr__(
            self, "prefix_cache_tokens", integer("prefix_cache_tokens", self.prefix_cache_tokens, least=0)
        )
        check_secret(self.secret)

    def setup(self, plan: Plan, workers: tuple[int, ...], *, codecs: str | None, origin_s: float | None) -> Setup:
        """Return the configuration of a session for its workers.

        Raises as `source_hashes` for models of the plan's weights that do not belong together.
        """
        return Setup(
            plan=plan.to_dict(),
            workers=workers,
            model=str(self.model),
            codecs=codecs,
            conditions=None if self.conditions is None else self.conditions.to_dict(),
            emulates=self.deployment.emulates,
            origin_s=origin_s,
            limits=self.limits(plan, ()),
            start_timeout_s=self.timeouts.start_s,
            stall_s=self.timeouts.stall_s,
            nonce=secrets.token_hex(16),
            source_hashes=source_hashes(plan),
            assistant=None if self.assistant is None else str(self.assistant),
            sends_codecs=self.deployment.hosts is not None,
            is_replicated=self.deployment.is_replicated,
        )

    def resumed(self, group: Group, *, is_moved: bool) -> Group:
        """Return a group as it goes on in another session, where its caches are if it `is_moved`."""
        if is_moved:
            return with_caches(group)
        # Positions behind images count from the prompt's, which is then told from the tokens that are replayed.
        is_exact = self.exact_resume or group.beside is not None
        return group if is_exact else replace(group, replayed=0)

    def limits(self, plan: Plan, ready: Sequence[Ready]) -> Limits:
        """Return how much may be in flight, as far as the stages that are ready tell."""
        micro_batches, stages = plan.workload.micro_batches, len(plan.stages)
        has_rate = plan.workload.arrivals_per_s is not None
        return Limits(
            most_groups=self.most_groups or max(micro_batches, stages),
            most_sequences=self.most_groups or (plan.workload.sequences if has_rate else _MOST_SEQUENCES),
            most_packs=micro_batches if micro_batches > 1 or has_rate else stages,
            pack_tokens=self.max_batch_tokens or max(_PACK_TOKENS, plan.workload.batch_size if has_rate else 1),
            cache_tokens=cache_tokens(plan, ready),
            prefix_tokens=self.prefix_cache_tokens,
            most_prompts=plan.prompts_under_way,
        )


@dataclass
class Callbacks:
    """The caller's functions that a pipeline calls; they may refer back to the pipeline."""

    progress: Progress
    replan: Replan | None


@dataclass(frozen=True, slots=True)
class Session:
    """The state of a session that is ready; after a loss it is replaced as a whole, never changed."""

    number: int
    plan: Plan
    workers: tuple[int, ...] = ()
    ready: tuple[Ready, ...] = ()

    @property
    def chunk_tokens(self) -> int | None:
        """The length of the chunks of prompts; None where they run as a whole."""
        return self.plan.chunk_tokens if self.runs_chunks else None

    @property
    def runs_chunks(self) -> bool:
        """Whether all stages run several tokens at once behind others."""
        return all(stage.runs_chunks for stage in self.ready)

    @property
    def runs_packs(self) -> bool:
        """Whether steps of several sequences may share forwards on all stages."""
        return all(stage.runs_packs and stage.rope_change is None for stage in self.ready)


def cache_tokens(plan: Plan, ready: Sequence[Ready]) -> int | None:
    """Return how many tokens' keys and values fit all nodes beside what is predicted without them; None: any number.

    The plan reserves memory for those of its workload; what its stages leave free has room for more.
    """
    if plan.prediction is None:
        return None
    workload = plan.workload
    planned = workload.sequences * (workload.prompt_tokens + workload.new_tokens)
    free = [
        max(0, stage.memory_bytes - predicted_bytes - loaded.assistant_bytes) // loaded.cache_bytes_per_token
        for stage, predicted_bytes, loaded in zip(plan.stages, plan.prediction.stage_memory_bytes, ready, strict=False)
        if stage.memory_bytes is not None and loaded.cache_bytes_per_token
    ]
    return planned + min(free) if free else None


def check_memory(plan: Plan, ready: Sequence[Ready]) -> None:
    """Raise ValueError if the weights of a stage, or what the plan predicts beside an assistant, exceed its node."""
    for rank, loaded in enumerate(ready):
        check_stage_memory(plan, rank, loaded)


def check_stage_memory(plan: Plan, rank: int, loaded: Ready) -> None:
    """Raise ValueError if the memory of a stage, as of `check_memory`, exceeds its node."""
    stage = plan.stages[rank]
    if stage.memory_bytes is None:
        return
    own_bytes = loaded.weight_bytes - loaded.assistant_bytes
    if own_bytes > stage.memory_bytes:
        raise ValueError(
            f"{stage_name(plan, rank)} needs {own_bytes:,} bytes for its weights in {plan.dtype}, "
            f"its limit is {stage.memory_bytes:,}"
        )
    predicted_bytes = 0 if plan.prediction is None else plan.prediction.stage_memory_bytes[rank]
    needed_bytes = max(own_bytes, predicted_bytes) + loaded.assistant_bytes
    if loaded.assistant_bytes and needed_bytes > stage.memory_bytes:
        raise ValueError(
            f"{stage_name(plan, rank)} needs {needed_bytes:,} bytes, {loaded.assistant_bytes:,} of them for the "
            f"assistant, its limit is {stage.memory_bytes:,}: plan with less memory of this node, or give none"
        )


def check_secret(secret: str | None) -> None:
    """Raise TypeError or ValueError for a secret, the argument or of the environment, that protects nothing."""
    if secret is not None and not isinstance(secret, str):
        raise TypeError(f"secret is a {type(secret).__name__}, must be a string")  # without its value
    if secret == "" or os.environ.get(SECRET_VARIABLE) == "":
        raise ValueError(f"the secret is empty; give none, and unset {SECRET_VARIABLE}, for messages without one")
