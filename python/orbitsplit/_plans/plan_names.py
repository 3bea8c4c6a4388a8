"""What names the numbers of a problem and its solution, as a plan has them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from orbitsplit._codebook.codebook import Codebook
from orbitsplit._network.network import Network
from orbitsplit._planner.problem import Evaluation, Problem
from orbitsplit._planner.problem_parts import Stage
from orbitsplit._planner.tied_weights import TiedBytes
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.rows import profile_of_rows
from orbitsplit._profiling.workload import Workload

from .settings import Choice, Setting
from .under_way import first_prompts_under_way, waiting_s
from .weight_options import Weights, tied_bytes_of


@dataclass(frozen=True, slots=True)
class PlanNames:
    """What names the numbers of a problem and its solution: model, network, workload and options of a plan."""

    network: Network
    workload: Workload
    profile: ModelProfile
    objective: str
    codebook: Codebook | None
    max_accuracy_drop: float | None
    weights: Weights = field(default_factory=dict)
    choice: Choice | None = None

    @property
    def profiles(self) -> tuple[ModelProfile, ...]:
        """The profile of each weight level, or the only one."""
        return (self.profile, *(option.profile for option in self.weights.values()))

    @property
    def tied_bytes(self) -> TiedBytes:
        """The tied bytes of the problem's plans."""
        return tied_bytes_of(self.profile, self.weights)

    @property
    def prompts_under_way(self) -> int | None:
        """The most micro-batches whose prompts are under way at once; None: all."""
        return None if self.choice is None else self.choice.setting.prompts_under_way

    def waiting_s(self, problem: Problem, result: Evaluation) -> float:
        """Return for how many seconds the prefill of a plan waits, since more prompts under way have no memory."""
        if self.workload.arrivals_per_s is not None:
            return 0.0  # the steady state has it
        prompts = self.workload.micro_batches
        return waiting_s(result, prompts, problem.micro_batches // prompts, self.prompts_under_way)

    def first_prompts_under_way(self, micro_batches: int) -> int | None:
        """Return how many prompts under way the search for a plan begins with."""
        return first_prompts_under_way(micro_batches, len(self.network.nodes), len(self.profile.layers))

    def workload_of(self, setting: Setting) -> Workload:
        """Return the workload in the micro-batches of a setting."""
        return replace(self.workload, micro_batches=setting.micro_batches, batch_size=setting.batch_size)

    @property
    def held(self) -> Workload:
        """The workload whose memory a stage has: requests that arrive at a rate have prompts of one row each."""
        if self.workload.arrivals_per_s is None:
            return self.workload
        return replace(self.workload, micro_batches=self.workload.sequences, batch_size=1)

    def chosen(self, choice: Choice) -> PlanNames:
        """Return the names of a plan of this choice, whose workload is divided so."""
        return replace(self, workload=self.workload_of(choice.setting), choice=choice)

    def profile_of(self, stage: Stage) -> ModelProfile:
        """Return the profile of the model that a stage loads, for the rows of the workload."""
        return profile_of_rows(self.profiles[stage.weight_level or 0], self.held.batch_size)

    def weights_of(self, stage: Stage) -> str | None:
        """Return the name of the weights of a stage, None for those of the profile."""
        return (None, *self.weights)[stage.weight_level or 0]
