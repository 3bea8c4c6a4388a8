"""Run Gemma 3 270M over four emulated satellites on 10 Mbit/s links: planned and compressed beside an even split.

    python benches/end_to_end.py

Both run on the same runtime with the same nodes, links and prompts, in bfloat16: a uniform split that sends bfloat16
as it is, and the plan that `osp.plan` makes with the calibrated codebook of `calibrate_gemma.py` for at most a point
of accuracy, checked by `osp.verify` on held-out text. Prints delay, bytes and accuracy, predicted and measured.
"""

from __future__ import annotations

from dataclasses import replace

import torch

import orbitsplit as osp
from calibrate_gemma import codebook, texts
from orbitsplit._model import demo_model, load_tokenizer

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 512, 16
NODES, SLOWDOWN, RATE_BYTES_PER_S, LATENCY_S = 4, 2.0, 10e6 / 8, 0.0042
MAX_ACCURACY_DROP = 0.01


def main() -> None:
    """Plan, verify, run both, print the table."""
    model, book = demo_model(), codebook()
    profile = osp.profile(model, prompt_tokens=PROMPT_TOKENS, dtype="bfloat16", measure=True)
    names = [f"sat-{k}" for k in range(NODES)]
    network = osp.Network(
        name="a chain of four",
        # No node holds the model (537 MB of weights, 336 of them the embeddings, which the head shares).
        nodes=tuple(osp.Node(name=name, memory_bytes=520_000_000, slowdown=SLOWDOWN) for name in names),
        links=tuple(
            osp.Link(a, b, RATE_BYTES_PER_S, LATENCY_S * abs(i - j))
            for i, a in enumerate(names)
            for j, b in enumerate(names)
            if i != j
        ),
    )
    workload = osp.Workload(micro_batches=PROMPTS, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)

    planned = osp.plan(profile, network, workload, codebook=book, max_accuracy_drop=MAX_ACCURACY_DROP)
    checked = osp.verify(
        planned,
        model,
        texts("held-out"),
        codebook=book,
        samples=13,
        replan=lambda budget: osp.plan(profile, network, workload, codebook=book, loss_budget=budget),
    )
    planned = checked.plan
    print(planned.explain(), checked, sep="\n", end="\n\n")

    problem = osp.build_problem(profile, network, workload, order="fixed")
    uniform = _plan_of(problem, osp.uniform(problem), planned)
    rows = _prompts(model)
    print("| plan | delay | predicted | prefill | per token step | bytes on links | of the uniform split's |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    runs = {"uniform, bfloat16": (uniform, _run(uniform, model, None, rows))}
    runs["planned, calibrated"] = (planned, _run(planned, model, book, rows))
    base = runs["uniform, bfloat16"][1]
    for name, (plan, run) in runs.items():
        assert plan.prediction is not None
        sent = sum(link.frame_bytes for link in run.links)
        share = sent / sum(link.frame_bytes for link in base.links)
        print(
            f"| {name} | {run.total_s:.2f} s ({100 * (run.total_s / base.total_s - 1):+.0f} %) "
            f"| {plan.prediction.total_s:.2f} s | {run.prefill_s:.2f} s | {run.token_step_s:.3f} s "
            f"| {sent / 1e6:.2f} MB | {100 * (share - 1):+.1f} % |"
        )


def _plan_of(problem: osp.Problem, stages: tuple[osp.Stage, ...], like: osp.Plan) -> osp.Plan:
    """Return stages of a problem as a plan without compression, with what the cost model predicts."""
    result = osp.evaluate(problem, stages)
    assert not result.violations, result.violations
    assert like.prediction is not None
    return replace(
        like,
        stages=tuple(
            osp.PlanStage(
                node=problem.nodes[stage.node].name,
                start=stage.start,
                stop=stage.stop,
                slowdown=SLOWDOWN,
                memory_bytes=int(problem.nodes[stage.node].memory_bytes),
            )
            for stage in stages
        ),
        links=(osp.PlanLink(RATE_BYTES_PER_S, LATENCY_S),) * (len(stages) - 1),
        return_latency_s=result.return_s,
        codebook=None,
        max_accuracy_drop=None,
        certificate=None,
        prediction=replace(
            like.prediction,
            total_s=result.objective_s,
            prefill_s=result.prefill_s,
            token_step_s=result.token_step_s,
            loss=0.0,
            stage_s=tuple(result.stage_s),
            link_s=tuple(result.link_s),
            decode_stage_s=tuple(result.decode_stage_s),
            decode_link_s=tuple(result.decode_link_s),
            stage_memory_bytes=tuple(int(size) for size in result.stage_memory_bytes),
            status="feasible",
        ),
    )


def _prompts(model: object) -> torch.Tensor:
    """Return prompts of held-out text, [PROMPTS, PROMPT_TOKENS]."""
    tokens = load_tokenizer(str(model))("\n".join(texts("held-out")), return_tensors="pt").input_ids[0]
    return tokens[: PROMPTS * PROMPT_TOKENS].view(PROMPTS, PROMPT_TOKENS)


def _run(plan: osp.Plan, model: object, book: osp.Codebook | None, rows: torch.Tensor) -> osp.Run:
    with osp.Pipeline(plan, str(model), codebook=book) as pipe:
        pipe.generate(rows[:, :8], max_new_tokens=2, eos_token_id=())  # the first forwards of a process are slower
        pipe.generate(rows, max_new_tokens=NEW_TOKENS, eos_token_id=())
        assert pipe.last_run is not None
        return pipe.last_run


if __name__ == "__main__":
    main()
