"""lm-evaluation-harness by `local-completions`: the figures of the unsplit model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Endpoint

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of its own dependencies

QUESTIONS = [
    {"question": f"{a} plus {b} is", "choices": [f" {a + b}", f" {a + b + 1}", f" {a - b}"], "answer": 0}
    for a in range(3, 7)
    for b in range(2, 5)
]
CHOICE = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
PERPLEXITY = """
task: texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from lm_eval.tasks import TaskManager

    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data, folder = tmp_path / "data.jsonl", tmp_path / "tasks"
    data.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    folder.mkdir()
    (folder / "sums.yaml").write_text(CHOICE.format(data=data))
    (folder / "texts.yaml").write_text(PERPLEXITY.format(data=data))
    return TaskManager(include_path=str(folder), include_defaults=False)


def figures(tasks: Any, kind: str, **arguments: Any) -> dict[str, dict[str, float]]:
    found = lm_eval.simple_evaluate(
        model=kind,
        model_args=arguments,
        tasks=["sums", "texts"],
        task_manager=tasks,
        bootstrap_iters=0,
        log_samples=True,
    )
    results = {
        task: {key: value for key, value in values.items() if isinstance(value, float)}
        for task, values in found["results"].items()
    }
    # The log-likelihood of each answer, which say more than how many are right.
    results["samples"] = {
        f"{sample['doc_id']}/{number}": float(answer[0])
        for sample in found["samples"]["sums"]
        for number, answer in enumerate(sample["filtered_resps"])
    }
    return results


def figures_of_server(tasks: Any, endpoint: Endpoint) -> dict[str, dict[str, float]]:
    return figures(
        tasks,
        "local-completions",
        model=endpoint.model,
        base_url=f"{endpoint.v1}/completions",
        tokenizer=str(endpoint.folder),
        tokenizer_backend="huggingface",
        max_length=1024,
        batch_size=4,
    )


@pytest.fixture
def unsplit(tasks: Any, folder: Path) -> dict[str, dict[str, float]]:
    """The figures of the unsplit model in transformers."""
    return figures(tasks, "hf", pretrained=str(folder), dtype="float32", device="cpu", max_length=1024, batch_size=4)


def test_the_figures_are_those_of_the_unsplit_model(endpoint: Endpoint, tasks: Any, unsplit: Any) -> None:
    found = figures_of_server(tasks, endpoint)
    assert len(found["samples"]) == 3 * len(QUESTIONS)
    for task, values in unsplit.items():
        assert found[task] == pytest.approx(values, abs=1e-4), task


def test_compression_costs_less_than_its_limit(compressed: Endpoint, tasks: Any, unsplit: Any) -> None:
    found = figures_of_server(tasks, compressed)
    assert found["texts"]["bits_per_byte,none"] <= unsplit["texts"]["bits_per_byte,none"] + 0.01
    assert found["samples"] == pytest.approx(unsplit["samples"], abs=0.05)
    assert found["samples"] != pytest.approx(unsplit["samples"], abs=1e-6)  # it is compressed
