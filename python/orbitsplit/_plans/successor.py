"""What a plan keeps of the one whose place it takes."""

from __future__ import annotations

from dataclasses import replace

from .plan import Plan


def with_settings_of(plan: Plan, before: Plan) -> Plan:
    """Return the plan that takes the place of another, with what users set of that one.

    These are model, dtype and threads, the models of weights that it has too, and the limit of accuracy where the plan
    has none of its own.
    """
    models = {name: before.weight_models.get(name, model) for name, model in plan.weight_models.items()}
    drop = before.max_accuracy_drop if plan.max_accuracy_drop is None else plan.max_accuracy_drop
    model = plan.model if before.model is None else before.model
    return replace(
        plan,
        model=model,
        dtype=before.dtype,
        threads=before.threads,
        max_accuracy_drop=drop,
        weight_models=models,
    )
