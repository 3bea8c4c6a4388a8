"""Runs all experiments and writes pictures, a report in Markdown and all numbers as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orbitsplit._io.files import write_text
from orbitsplit._io.json_document import write_document
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit.leo._scenarios.scenario import Scenario

from . import break_even, experiments, strategies
from .charts import Chart, Map
from .headlines import agreements, headlines, verdicts
from .published import MODELS, RANDOM_PLANS, profiled
from .report import markdown
from .results import PaperBench
from .setup import Setup, unusable

REPORT, RESULTS = "report.md", "results.json"
# Of float32 on the plain lanes; in half precision on tensor cores, peaks are 8 times higher.
_TENSOR_CORES = 8.0


def bench_paper(
    output: str | Path | None = None,
    *,
    scenario: str | Path = "paper",
    models: Sequence[str] = MODELS,
    model: str = "ViT-L",
    plans: int = RANDOM_PLANS,
    seed: int = 0,
    pictures: bool = True,
    progress: Callable[[str, float], None] | None = None,
) -> PaperBench:
    """Run the experiments of arXiv 2604.04654 and, with `output`, write them to that folder.

    Delay against resolution, downlink and model, bytes over links, stages of compression, `plans` random splits,
    algorithms, and where "do not split" is the answer. All but those over `models` use `model`. The files are
    `report.md`, `results.json` and, with `pictures`, each chart as .png and .svg.

    Example:
        >>> bench_paper("paper").verdicts[0].loses     # doctest: +SKIP
        False

    Raises:
        ValueError: There is no such model or scenario, or the scenario cannot be a setting: it lacks a link, a station
            with a device, compute in FLOP/s of its computers, or memory for the model.
        ImportError: transformers, or for pictures matplotlib, is not installed.
        OSError: The folder cannot be written.
    """
    began = time.monotonic()
    notify = progress or (lambda _step, _fraction: None)
    wanted = dict.fromkeys([*models, model])
    _check(list(wanted), plans)
    loaded = Scenario.load(scenario)
    folder = None if output is None else _folder(output, pictures=pictures)
    notify("profiling", 0.0)
    profiles = {name: profiled(name) for name in wanted}
    setup = _setting(loaded, profiles[model])
    found = run(setup, {name: profiles[name] for name in models}, plans=plans, seed=seed, progress=notify)
    files = () if folder is None else write(found, folder, pictures=pictures)
    notify("done", 1.0)
    return PaperBench(**{**vars(found), "files": files, "seconds": time.monotonic() - began})


def _check(models: Sequence[str], plans: int) -> None:
    for name in models:
        if name not in MODELS:
            raise ValueError(f"no model {name!r}; there are: {', '.join(MODELS)}")
    if plans < 1:
        raise ValueError(f"plans is {plans}, must be at least 1")


def _folder(output: str | Path, *, pictures: bool) -> Path:
    """Create and return the folder; a package that pictures lack is an error before the work."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    if pictures:
        from . import figures  # noqa: F401
    return folder


def _setting(scenario: Scenario, profile: ModelProfile) -> Setup:
    """Return the scenario's setting; raise if no split fits."""
    setup = Setup.of(scenario, profile)
    split = strategies.planned(setup)
    if split.delay_s is None:
        raise unusable(scenario, f"{profile.model} does not fit: {split.reason}")
    return setup


def run(
    setup: Setup,
    profiles: Mapping[str, ModelProfile],
    *,
    plans: int = RANDOM_PLANS,
    seed: int = 0,
    progress: Callable[[str, float], None],
) -> PaperBench:
    """Return all results of one setting."""
    steps: dict[str, Callable[[], Chart | Map]] = {
        "resolution": lambda: experiments.over_resolution(setup),
        "downlink": lambda: experiments.over_downlink(setup),
        "models": lambda: experiments.over_models(setup, profiles),
        "communication": lambda: experiments.communication(setup),
        "compression": lambda: experiments.compression(setup),
        "compression on faster computers": lambda: experiments.compression(setup, faster=_TENSOR_CORES),
        "robustness": lambda: experiments.robustness(setup, count=plans, seed=seed),
        "algorithms": lambda: experiments.algorithms(setup, profiles),
        "algorithms by batches": lambda: experiments.algorithms_over_batches(setup),
        "break-even over links": lambda: break_even.over_isl_and_hops(setup, "720p"),
        "break-even over links, 1080p": lambda: break_even.over_isl_and_hops(setup, "1080p"),
        "break-even over resolution": lambda: break_even.over_resolution_and_downlink(setup),
        "break-even over waiting": lambda: break_even.over_waiting(setup),
    }
    charts = []
    for k, (name, step) in enumerate(steps.items()):
        progress(name, (k + 1) / (len(steps) + 2))
        charts.append(step())
    progress("table", (len(steps) + 1) / (len(steps) + 2))
    modes = ", ".join(f"{(node.flop_per_s or 0) / 1e12:.3g}" for node in setup.satellites)
    return PaperBench(
        model=setup.profile.model,
        setting=f"{setup.batches} batches, {len(setup.satellites)} satellites of {modes} TFLOP/s,"
        f" {setup.hops} relay hops, {setup.isl_bytes_per_s * 8e-9:g} Gbit/s between them,"
        f" {setup.downlink_bytes_per_s * 8e-9:g} Gbit/s down",
        headlines=headlines(setup),
        verdicts=verdicts(setup),
        agreements=agreements(setup),
        charts=tuple(charts),
    )


def write(bench: PaperBench, folder: Path, *, pictures: bool) -> tuple[Path, ...]:
    """Write report, numbers and pictures; return the files."""
    write_text(folder / REPORT, markdown(bench))
    write_document(folder / RESULTS, bench.to_dict())
    files = [folder / REPORT, folder / RESULTS]
    if pictures:
        from .figures import draw

        for shown in bench.charts:
            files += draw(shown, folder)
    return tuple(files)
