"""Plans as the settings of other engines: which layers go to which device, and what those engines cannot do."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from orbitsplit._io.validation import check_choice, check_kind, quoted, tuple_of

_RPC_PORT = 50052  # the default of llama.cpp's ggml-rpc-server

Engine = Literal["accelerate", "vllm", "llama.cpp", "torch"]


class Stage(Protocol):
    """What is taken of a stage of a plan."""

    @property
    def node(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def codec(self) -> str | None: ...
    @property
    def weights(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class Export:
    """A plan as another engine takes it.

    Attributes:
        engine: "accelerate", "vllm", "llama.cpp" or "torch".
        settings: What the engine's Python interface takes, JSON-ready.
        text: The same to be typed or pasted.
        nodes: Node of each rank or device, in order.
        not_exported: What the plan decides and the engine cannot do, in sentences.
    """

    engine: str
    settings: Mapping[str, Any]
    text: str
    nodes: tuple[str, ...]
    not_exported: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The parts of a plan that are exported; `model` is needed where modules have names."""

    stages: Sequence[Stage]
    layers: int
    model: str | Path | None
    chunk_tokens: int | None
    draft_tokens: int | None
    devices: Sequence[str | int] | None

    @property
    def counts(self) -> list[int]:
        """Transformer layers of each stage: neither embeddings nor head."""
        return [min(stage.stop, self.layers - 1) - max(stage.start, 1) for stage in self.stages]


def export(engine: str, plan: Exported) -> Export:
    """Return a plan as the settings of an engine. Raises ValueError for another engine, or what it cannot take."""
    check_choice("engine", engine, get_args(Engine))
    if plan.devices is not None:
        for k, device in enumerate(tuple_of("devices", plan.devices)):
            check_kind(f"devices[{k}]", device, int if isinstance(device, int) else str)
        if len(plan.devices) != len(plan.stages):
            raise ValueError(f"devices are {len(plan.devices)}, the plan has {len(plan.stages)} stages")
    writers: dict[str, Callable[[Exported], tuple[dict[str, Any], str, list[str]]]] = {
        "accelerate": _accelerate,
        "vllm": _vllm,
        "llama.cpp": _llama_cpp,
        "torch": _torch,
    }
    settings, text, notes = writers[engine](plan)
    return Export(
        engine=engine,
        settings=settings,
        text=text,
        nodes=tuple(stage.node for stage in plan.stages),
        not_exported=(*_lost(engine, plan), *notes),
    )


def _lost(engine: str, plan: Exported) -> list[str]:
    """Return what no other engine takes from a plan."""
    lost = [
        f"{engine} sends the activation behind layer {stage.stop - 1} uncompressed, the plan has codec {stage.codec}"
        for stage in plan.stages
        if stage.codec is not None
    ]
    lost += [
        f"{engine} loads the same weights everywhere, the plan has {stage.weights} on {stage.node}"
        for stage in plan.stages
        if stage.weights is not None
    ]
    if plan.chunk_tokens is not None:
        lost.append(f"chunks of {plan.chunk_tokens} tokens of a prompt are a setting of {engine}'s own, if it has one")
    if plan.draft_tokens is not None:
        lost.append(f"{plan.draft_tokens} guesses with each token are a setting of {engine}'s own, if it has one")
    return lost


def _vllm(plan: Exported) -> tuple[dict[str, Any], str, list[str]]:
    for stage, count in zip(plan.stages, plan.counts, strict=True):
        if count < 1:
            raise ValueError(
                f"the stage on {quoted(stage.node)} has no transformer layer, a rank of vLLM has at least one"
            )
    partition = ",".join(map(str, plan.counts))
    settings = {"VLLM_PP_LAYER_PARTITION": partition, "pipeline_parallel_size": len(plan.stages)}
    model = "MODEL" if plan.model is None else shlex.quote(str(plan.model))
    text = f"VLLM_PP_LAYER_PARTITION={partition} vllm serve {model} --pipeline-parallel-size {len(plan.stages)}"
    return settings, text, ["vLLM numbers ranks itself: start its workers in the order of the nodes"]


def _llama_cpp(plan: Exported) -> tuple[dict[str, Any], str, list[str]]:
    # llama.cpp shares out its layers and, as one more, the output; embeddings stay where the program runs.
    shares = [*plan.counts[:-1], plan.counts[-1] + 1]
    hosts = [f"{stage.node}:{_RPC_PORT}" for stage in plan.stages]
    devices = plan.devices or [f"RPC0[{host}]" for host in hosts]
    overrides = [
        rf"blk\.({'|'.join(map(str, range(max(stage.start, 1) - 1, min(stage.stop, plan.layers - 1) - 1)))})\.={device}"
        for stage, device, count in zip(plan.stages, devices, plan.counts, strict=True)
        if count
    ]
    split = ",".join(map(str, shares))
    settings = {"split_mode": "layer", "n_gpu_layers": plan.layers - 1, "tensor_split": shares, "overrides": overrides}
    servers = "" if plan.devices else f"--rpc {','.join(hosts)} "
    text = f"{servers}--n-gpu-layers {plan.layers - 1} --split-mode layer --tensor-split {split}\n" + "\n".join(
        f"-ot '{override}'" for override in overrides
    )
    return settings, text, [
        "llama.cpp keeps the embeddings on the machine that it is started on",
        "use --tensor-split, which moves keys and values too, or -ot, which moves weights alone; "
        f"devices in order: {', '.join(map(str, devices))}",
    ]  # fmt: skip


def _accelerate(plan: Exported) -> tuple[dict[str, Any], str, list[str]]:
    names = _names(plan)
    devices = plan.devices or list(range(len(plan.stages)))
    placed: dict[str, str | int] = dict.fromkeys(names.before, devices[0])
    for stage, device in zip(plan.stages, devices, strict=True):
        for layer in range(max(stage.start, 1), min(stage.stop, plan.layers - 1)):
            placed[names.layers[layer - 1]] = device
    placed |= dict.fromkeys(names.after, devices[-1])
    lines = "".join(f"    {name!r}: {device!r},\n" for name, device in placed.items())
    notes = ["accelerate runs one device after the other: micro-batches do not overlap"]
    if names.is_tied and len(plan.stages) > 1:
        notes.append("embeddings and head share weights: accelerate keeps a copy on the last device")
    return {"device_map": placed}, f"device_map = {{\n{lines}}}", notes


def _torch(plan: Exported) -> tuple[dict[str, Any], str, list[str]]:
    names = _names(plan)
    points = {}
    for stage in plan.stages[:-1]:
        cut = stage.stop - 1  # transformer layers before it
        name, point = (names.layers[cut], "BEGINNING") if cut < len(names.layers) else (names.layers[-1], "END")
        if name in points:
            raise ValueError(f"the stage on {quoted(stage.node)} has no transformer layer, torch splits at layers")
        points[name] = point
    lines = "".join(f"    {name!r}: SplitPoint.{point},\n" for name, point in points.items())
    text = f"from torch.distributed.pipelining import SplitPoint\n\nsplit_spec = {{\n{lines}}}"
    return {"split_spec": points}, text, ["torch.distributed.pipelining runs no generation with a cache of its own"]


def _names(plan: Exported) -> Any:
    """Return the names of the model's modules."""
    if plan.model is None:
        raise ValueError("the plan names no model, whose modules have the names: give model=")
    try:
        from orbitsplit._models.module_names import module_names
    except ModuleNotFoundError as error:
        raise ImportError(f'names of modules need {error.name}: pip install "orbitsplit[models]"') from error
    names = module_names(plan.model)
    if len(names.layers) != plan.layers - 2:
        raise ValueError(f"{plan.model} has {len(names.layers)} layers, the plan is for {plan.layers - 2}")
    return names
