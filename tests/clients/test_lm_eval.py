"""lm-evaluation-harness by `local-completions`: the figures of the unsplit model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import TOKENS, Endpoint, Planned

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


# Whether the next token is the likeliest one: the accuracy that the limit of a plan is about.
NEXT_TOKEN = """
task: next
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{before}}}}"
doc_to_target: "{{{{token}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
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


def next_token_accuracy(planned: Planned, kind: str, folder: Path, **arguments: Any) -> float:
    """Return the accuracy of a model in predicting tokens of the texts."""
    from lm_eval.tasks import TaskManager

    rows = [{"before": text[:at], "token": text[at]} for text in planned.texts for at in range(TOKENS // 2, TOKENS, 2)]
    data = folder / "next.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "next.yaml").write_text(NEXT_TOKEN.format(data=data))
    found = lm_eval.simple_evaluate(
        model=kind,
        model_args=arguments,
        tasks=["next"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    return float(found["results"]["next"]["acc,none"])


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


def of_server(endpoint: Endpoint) -> dict[str, Any]:
    """Return the arguments with which lm-eval reaches a server."""
    return {
        "model": endpoint.model,
        "base_url": f"{endpoint.v1}/completions",
        "tokenizer": str(endpoint.folder),
        "tokenizer_backend": "huggingface",
        "max_length": 1024,
        "batch_size": 4,
    }


def of_transformers(folder: Path) -> dict[str, Any]:
    """Return the arguments with which lm-eval loads a model."""
    return {"pretrained": str(folder), "dtype": "float32", "device": "cpu", "max_length": 1024, "batch_size": 4}


def figures_of_server(tasks: Any, endpoint: Endpoint) -> dict[str, dict[str, float]]:
    return figures(tasks, "local-completions", **of_server(endpoint))


@pytest.fixture
def unsplit(tasks: Any, folder: Path) -> dict[str, dict[str, float]]:
    """The figures of the unsplit model in transformers."""
    return figures(tasks, "hf", **of_transformers(folder))


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


@pytest.mark.usefixtures("tasks")  # nothing is fetched
def test_a_plan_keeps_its_limit_of_accuracy_when_it_is_served(planned: Planned, tmp_path: Path) -> None:
    endpoint = planned.endpoint
    unsplit = next_token_accuracy(planned, "hf", tmp_path, **of_transformers(endpoint.folder))
    found = next_token_accuracy(planned, "local-completions", tmp_path, **of_server(endpoint))
    assert 0.3 < unsplit < 0.95  # neither chance nor so sure that nothing could change it
    assert unsplit - planned.max_accuracy_drop <= found
