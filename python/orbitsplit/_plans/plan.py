"""Plans: which node runs which layers, and how the activation is encoded at each cut.

Layers are numbered as in a `Problem`: 0 is the embeddings, 1..n are the transformer layers, n + 1 is the head. A plan
is plain data. `orbitsplit.plan` makes one, `orbitsplit.Pipeline` runs one, and neither needs the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orbitsplit._io.device_names import CPU
from orbitsplit._io.dtypes import check_dtype
from orbitsplit._io.json_document import data_of, document_of, load_document, write_document
from orbitsplit._io.validation import (
    check_count,
    check_keys,
    check_kind,
    check_string,
    list_of,
    listed,
    mapping_of,
    quoted,
    record_of,
    records_of,
    tuple_of,
)
from orbitsplit._planner.certificate import Certificate
from orbitsplit._profiling.workload import Workload

from .drafts import check_draft_rows
from .export import Engine, Export, Exported, export
from .plan_parts import PlanLink, PlanStage, check_not_negative, layer_range, stage_records
from .prediction import Prediction, bottlenecks, compared, read_prediction, remove_defaults, throughput

if TYPE_CHECKING:
    from orbitsplit._codebook.codebook import Codebook

FORMAT = "orbitsplit-plan"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages in order, the links between them, and predictions; frozen, with a JSON round trip.

    Attributes:
        stages: The stages, in order of their layers.
        links: `links[k]` joins stage k to stage k + 1.
        layers: Number of layers; the embeddings and the head count.
        workload: What the plan was made for.
        return_latency_s: Seconds that a new token takes from the last stage back to the first.
        model: Name or path of the model; None if unknown.
        dtype: The dtype that the model was profiled with; another one takes other memory and time.
        threads: The torch threads of a stage that the model was profiled with.
        prediction: What the cost model predicts; None for a plan by hand.
        certificate: The certificate of `plan(..., explain=True)`.
        codebook: Hexadecimal id of the codebook that has the levels of the stages.
        max_accuracy_drop: The limit that it was planned for, as a fraction (see `verify`).
        return_latencies_s: `return_latency_s` of each link on the way of a token back: of the one from the last node to
            the first, or of those back along the chain. Empty: the way is the link from the last node to the first.
        weight_models: Name or path of the model with the `weights` of a stage, by their name.
        chunk_tokens: Prompts run through the stages in chunks of so many tokens; None: as a whole.
        draft_tokens: So many guesses of the next tokens go along with each token; None: none.
        prompts_under_way: The most micro-batches whose prompts run at once, as many as keep the slowest stage or link
            busy, so that what waits on a stage does not grow with the workload; None: any number.

    Raises:
        ValueError: The stages do not cover all layers in order, a node appears twice, or the number of links is not the
            number of stages minus one, or a stage has `weights` without a model, or guesses go along with tokens of
            several rows.
    """

    stages: tuple[PlanStage, ...]
    links: tuple[PlanLink, ...]
    layers: int
    workload: Workload = field(default_factory=Workload)
    return_latency_s: float = 0.0
    model: str | None = None
    dtype: str = "float32"
    threads: int = 1
    prediction: Prediction | None = None
    certificate: Certificate | None = None
    codebook: str | None = None
    max_accuracy_drop: float | None = None
    return_latencies_s: tuple[float, ...] = ()
    weight_models: Mapping[str, str] = field(default_factory=dict, hash=False)
    chunk_tokens: int | None = None
    draft_tokens: int | None = None
    prompts_under_way: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple_of("stages", self.stages, PlanStage))
        object.__setattr__(self, "links", tuple_of("links", self.links, PlanLink))
        check_kind("workload", self.workload, Workload)
        check_count("layers", self.layers, 1)
        check_count("threads", self.threads, 1)
        if self.chunk_tokens is not None:
            check_count("chunk_tokens", self.chunk_tokens, 1)
        if self.draft_tokens is not None:
            check_count("draft_tokens", self.draft_tokens, 1)
            check_draft_rows(self.draft_tokens, self.workload)
        if self.prompts_under_way is not None:
            check_count("prompts_under_way", self.prompts_under_way, 1)
        check_dtype("dtype", self.dtype)
        check_not_negative("return_latency_s", self.return_latency_s)
        if not self.stages:
            raise ValueError("a plan needs at least one stage")
        self._check_return()
        self._check_weights()
        if len(self.links) != len(self.stages) - 1:
            raise ValueError(f"{len(self.stages)} stages need {len(self.stages) - 1} links, got {len(self.links)}")
        expected = 0
        for stage in self.stages:
            if stage.start != expected:
                raise ValueError(
                    f"the stage on {quoted(stage.node)} starts at layer {stage.start}, expected {expected}"
                )
            expected = stage.stop
        if expected != self.layers:
            raise ValueError(f"the stages end at layer {expected}, the model has {self.layers}")
        nodes = [stage.node for stage in self.stages]
        if self.stages[-1].codec is not None:
            raise ValueError(f"the last stage has codec {quoted(self.stages[-1].codec)}, nothing is sent from it")
        if self.codebook is None and self.codebook_levels:
            raise ValueError("a stage has a level of a codebook, and the plan names no codebook")
        if self.max_accuracy_drop is not None:
            check_not_negative("max_accuracy_drop", self.max_accuracy_drop)
        twice = [node for node in nodes if nodes.count(node) > 1]
        if twice:
            raise ValueError(f"node {quoted(twice[0])} has {nodes.count(twice[0])} stages, a node runs at most one")

    def _check_return(self) -> None:
        latencies_s = tuple_of("return_latencies_s", self.return_latencies_s)
        object.__setattr__(self, "return_latencies_s", latencies_s)
        for k, latency_s in enumerate(latencies_s):
            check_not_negative(f"return_latencies_s[{k}]", latency_s)
        if not latencies_s:
            return
        links = len(self.stages) - 1
        if len(latencies_s) not in (1, links) or links == 0:
            raise ValueError(f"return_latencies_s are of {len(latencies_s)} links, a token returns over 1 or {links}")
        if not math.isclose(sum(latencies_s), self.return_latency_s, rel_tol=1e-9):
            total = f"{sum(latencies_s)}, return_latency_s is {self.return_latency_s}"
            raise ValueError(f"return_latencies_s add up to {total}")

    def _check_weights(self) -> None:
        object.__setattr__(self, "weight_models", dict(mapping_of("weight_models", self.weight_models)))
        for name, model in self.weight_models.items():
            check_string("a name in weight_models", name)
            check_string(f"weight_models[{quoted(name)}]", model)
        for stage in self.stages:
            if stage.weights is not None and stage.weights not in self.weight_models:
                fact = f"the stage on {quoted(stage.node)} has weights {quoted(stage.weights)}"
                raise ValueError(f"{fact}, of which weight_models names no model")

    @property
    def return_way(self) -> tuple[str, ...]:
        """The nodes that a new token passes from the last stage back to the first, both included."""
        nodes = tuple(stage.node for stage in reversed(self.stages))
        return nodes if len(self.return_latencies_s) > 1 else (nodes[0], nodes[-1])[: len(nodes)]

    @classmethod
    def manual(
        cls,
        cuts: Sequence[int],
        layers: int,
        *,
        codecs: Sequence[str | None] | None = None,
        codebook: Codebook | None = None,
        levels: Sequence[int | None] | None = None,
        nodes: Sequence[str] | None = None,
        chunk_tokens: int | None = None,
    ) -> Plan:
        """Make a plan by hand: cut after `cuts` transformer layers of a model that has `layers` of them.

        `nodes` are the names of the stages' nodes, by default `node 0`, `node 1`, ...; the rates of links are not
        limited. Nothing is compressed unless `codecs` has one codec per cut, or `levels` one level of the `codebook`
        per cut (None: uncompressed). Prompts run in chunks of `chunk_tokens`, or as a whole.

        Example:
            >>> [(s.start, s.stop) for s in Plan.manual(cuts=[2, 3], layers=6).stages]
            [(0, 3), (3, 4), (4, 8)]

        Raises:
            ValueError: Cuts are not increasing, not in 0..layers, `codecs` has another length than `cuts`, or `nodes`
                another than one more, or a name twice.
            LookupError: The codebook has no such cut or level.
        """
        check_count("layers", layers, 1)
        if levels is not None:
            if codebook is None or codecs is not None:
                raise ValueError("levels are those of a codebook: give one, and no codecs")
            if len(levels) != len(cuts):
                raise ValueError(f"{len(cuts)} cuts need {len(cuts)} levels, got {len(levels)}")
            plan = cls.manual(cuts, layers, nodes=nodes, chunk_tokens=chunk_tokens)
            return plan.with_levels(codebook, dict(zip(cuts, levels, strict=True)))
        names = [f"node {k}" for k in range(len(cuts) + 1)] if nodes is None else list(nodes)
        if len(names) != len(cuts) + 1:
            raise ValueError(f"{len(cuts)} cuts make {len(cuts) + 1} stages, got {len(names)} nodes")
        chosen = [None] * len(cuts) if codecs is None else list(codecs)
        if len(chosen) != len(cuts):
            raise ValueError(f"{len(cuts)} cuts need {len(cuts)} codecs, got {len(chosen)}")
        previous = -1
        for cut in cuts:
            check_count("cut", cut, 0)
            if not previous < cut <= layers:
                raise ValueError(f"cut {cut} must be above {previous} and at most {layers}, the number of layers")
            previous = cut
        edges = [0, *(cut + 1 for cut in cuts), layers + 2]
        stages = tuple(
            PlanStage(node=names[k], start=edges[k], stop=edges[k + 1], codec=codec)
            for k, codec in enumerate([*chosen, None])
        )
        return cls(stages=stages, links=(PlanLink(),) * len(cuts), layers=layers + 2, chunk_tokens=chunk_tokens)

    @property
    def codebook_levels(self) -> dict[int, int]:
        """The index of the codebook's level by cut, of the cuts that have one; `with_levels` takes it."""
        found = {stage.cut: stage.codebook_level for stage in self.stages}
        return {cut: level for cut, level in found.items() if level is not None}

    def with_levels(self, codebook: Codebook, levels: Mapping[int, int | None]) -> Plan:
        """Return the plan with these levels of a codebook at its cuts (None: uncompressed), and no prediction.

        Raises:
            LookupError: The codebook or the plan does not have a cut, or the codebook a level.
            ValueError: The codebook is for another number of layers.
        """
        if codebook.model.layers + 2 != self.layers:
            raise ValueError(
                f"the codebook was calibrated for {codebook.model.layers} layers, the plan is for {self.layers - 2}"
            )
        cuts = [stage.cut for stage in self.stages[:-1]]
        if unknown := set(levels) - set(cuts):
            raise LookupError(f"the plan has no cut {min(unknown)}, it has {listed(cuts)}")
        stages = list(self.stages)
        for k, cut in enumerate(cuts):
            level = levels.get(cut)
            name = None if level is None else codebook.level_at(cut, level).name
            stages[k] = replace(stages[k], codec=name, codebook_level=level)
        named = codebook.hex_id if any(level is not None for level in levels.values()) else None
        return replace(self, stages=tuple(stages), codebook=named, prediction=None, certificate=None)

    def uncompressed(self) -> Plan:
        """Return the plan without compression, and without a prediction."""
        stages = tuple(replace(stage, codec=None, codebook_level=None) for stage in self.stages)
        return replace(self, stages=stages, codebook=None, prediction=None, certificate=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data, keys of later versions where they say something; see `from_dict`."""
        data = asdict(self)
        for stage in data["stages"]:
            if stage["weights"] is None:
                del stage["weights"]
            if stage["device"] == CPU:
                del stage["device"]
        if not data["weight_models"]:
            del data["weight_models"]
        for key in ("chunk_tokens", "draft_tokens", "prompts_under_way"):
            if data[key] is None:
                del data[key]
        if not self.workload.acceptance:
            del data["workload"]["acceptance"]
        if self.workload.arrivals_per_s is None:
            del data["workload"]["arrivals_per_s"]
        if self.prediction is not None:
            remove_defaults(data["prediction"])
        return document_of(FORMAT, VERSION, data)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Plan:
        """Make a plan from what `to_dict` returned.

        Raises:
            ValueError: A key is missing, unknown or has a wrong value; the message names it.
        """
        values = data_of(FORMAT, VERSION, document)
        check_keys("the plan", values, cls)
        values["stages"] = records_of("stages", stage_records(values["stages"]), PlanStage)
        values["links"] = records_of("links", list_of("links", values["links"]), PlanLink)
        if "workload" in values:
            values["workload"] = record_of("workload", values["workload"], Workload)
        if values.get("prediction") is not None:
            values["prediction"] = read_prediction(values["prediction"])
        if values.get("certificate") is not None:
            values["certificate"] = Certificate.from_dict(values["certificate"])
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        write_document(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            ValueError: The file is not JSON or not a plan.
        """
        return load_document(path, cls.from_dict)

    def export(
        self, engine: Engine, *, model: str | Path | None = None, devices: Sequence[str | int] | None = None
    ) -> Export:
        """Return the plan as settings of another engine; `not_exported` says what that engine cannot do.

        Args:
            engine: "accelerate" (a `device_map`), "vllm" (`VLLM_PP_LAYER_PARTITION`), "llama.cpp" (`--tensor-split` and
                `-ot`) or "torch" (split points of `torch.distributed.pipelining`).
            model: Path or name, for the names of modules (accelerate, torch). Default: the plan's model.
            devices: The engine's name of the device of each stage (accelerate, llama.cpp). Default: 0, 1, ... and the
                RPC server of each node, which is then the name of a host.

        Example:
            >>> Plan.manual(cuts=[2], layers=6).export("vllm").settings["VLLM_PP_LAYER_PARTITION"]
            '2,4'

        Raises:
            ValueError: There is no such engine, it cannot run such stages, or the model is missing or another one.
        """
        exported = Exported(
            stages=self.stages,
            layers=self.layers,
            model=self.model if model is None else model,
            chunk_tokens=self.chunk_tokens,
            draft_tokens=self.draft_tokens,
            devices=devices,
        )
        return export(engine, exported)

    def explain(self) -> str:
        """Return a text with the plan, its bottlenecks if it has a prediction, and its certificate if it has one."""
        space = " " * bool(self.weight_models)
        lines = [self._chain(lambda stage: f" layers {layer_range(stage, self.layers)}{space}")]
        if self.prediction is not None:
            lines += bottlenecks(self.prediction, [stage.node for stage in self.stages], self.chunk_tokens)
            lines += throughput(self.prediction, self.workload)
            lines += self.compared()
        if self.certificate is not None:
            if self.chunk_tokens is not None:
                lines.append(
                    f"what follows has prompts in chunks of {self.chunk_tokens} tokens too: on one node whole prompts "
                    f"would take less"
                )
            lines.append(str(self.certificate))
        return "\n".join(lines)

    def summary(self) -> list[str]:
        """Return a line on requests that arrive at a rate or on throughput, if it has one, and those of `compared`."""
        prediction = self.prediction
        if prediction is None:
            return []
        if prediction.in_flight is None:
            return throughput(prediction, self.workload) + self.compared()
        return bottlenecks(prediction, [stage.node for stage in self.stages]) + self.compared()

    def compared(self) -> list[str]:
        """Return a line for each of rows, chunks and guesses of which several were tried: the best plan with each."""
        return (
            []
            if self.prediction is None
            else compared(self.prediction, self.workload, self.chunk_tokens, self.draft_tokens)
        )

    def __str__(self) -> str:
        return self._chain(lambda stage: f"[{stage.start}:{stage.stop}]")

    def _chain(self, layers_of: Callable[[PlanStage], str]) -> str:
        parts = []
        for k, stage in enumerate(self.stages):
            weights = f"({stage.weights or self.dtype})" if self.weight_models else ""
            parts.append(f"{stage.node}{layers_of(stage)}{weights}")
            if k < len(self.links):
                parts.append(f"-{stage.codec or 'raw'}->")
        return " ".join(parts)
