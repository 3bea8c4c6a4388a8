"""Parts of a session: its settings, its state, the functions that it calls."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orbitsplit._codebook.codebook import Codebook
from orbitsplit._network.link_conditions import LinkConditions
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages.control import Ready, Setup, stage_name

from .options import Timeouts
from .recovery import Replan
from .stage_models import source_hashes

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Deployment:
    """The machines of a pipeline's processes: all on this machine, or some on others, started by torchrun.

    The control store is served at `address`. `remote_nodes[k]` is the node of stage k if its process is not started
    here, else None. If `emulates`, links and nodes are emulated as the plan describes them.
    """

    address: str = "127.0.0.1"
    port: int = 0
    remote_nodes: tuple[str | None, ...] = ()
    emulates: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of all sessions of a pipeline; fields as the arguments of `Pipeline`."""

    model: Path | str
    codebook: Codebook | str | Path | None = None
    conditions: LinkConditions | None = None
    exact_resume: bool = True
    most_groups: int | None = None
    secret: str | None = field(default=None, repr=False)
    timeouts: Timeouts = field(default_factory=Timeouts)
    deployment: Deployment = field(default_factory=Deployment)

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
            most_groups=self.most_groups or max(plan.workload.micro_batches, len(plan.stages)),
            start_timeout_s=self.timeouts.start_s,
            nonce=secrets.token_hex(16),
            source_hashes=source_hashes(plan),
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


def check_memory(plan: Plan, ready: Sequence[Ready]) -> None:
    """Raise ValueError if the weights of a stage exceed the memory of its node."""
    for rank, (stage, loaded) in enumerate(zip(plan.stages, ready, strict=True)):
        if stage.memory_bytes is not None and loaded.weight_bytes > stage.memory_bytes:
            raise ValueError(
                f"{stage_name(plan, rank)} needs {loaded.weight_bytes:,} bytes for its weights in {plan.dtype}, "
                f"its limit is {stage.memory_bytes:,}"
            )
