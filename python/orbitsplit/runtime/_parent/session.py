"""What a pipeline's sessions are given, and what belongs together while one runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages.control import Ready

from .recovery import Replan
from .supervisor import stage_name

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Where:
    """Where the processes of a pipeline are: all on this machine, or some on others, started by torchrun.

    The control store is served at `address`; `elsewhere[k]` is the node of stage k where its process is started by
    somebody else, None where it is started here. Rates and delays of links are emulated where `emulates`.
    """

    address: str = "127.0.0.1"
    port: int = 0
    elsewhere: tuple[str | None, ...] = ()
    emulates: bool = True


@dataclass
class Callbacks:
    """What a pipeline calls of its caller's; either may refer back to the pipeline."""

    progress: Progress
    replan: Replan | None


@dataclass(frozen=True, slots=True)
class Session:
    """What belongs together while a plan runs: replaced as a whole after a loss, never changed."""

    number: int
    plan: Plan
    workers: tuple[int, ...] = ()
    ready: tuple[Ready, ...] = ()


def check_memory(plan: Plan, ready: Sequence[Ready]) -> None:
    """Raise ValueError if the weights of a stage exceed the memory of its node."""
    for rank, (stage, loaded) in enumerate(zip(plan.stages, ready, strict=True)):
        if stage.memory_bytes is not None and loaded.weight_bytes > stage.memory_bytes:
            raise ValueError(
                f"{stage_name(plan, rank)} needs {loaded.weight_bytes:,} bytes for its weights in {plan.dtype}, "
                f"its limit is {stage.memory_bytes:,}"
            )
