"""Sections about what a run rests on: refusals, environment, how to make it again."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from ...ir.spans import Refusal
from ...passes.plan import Plan
from .parts import Section, Table


def refusals(found: Sequence[Refusal]) -> Section | None:
    if not found:
        return None
    rows = tuple((refusal.name, refusal.reason, refusal.node) for refusal in found)
    text = "Units and blocks that no map can replace, stems, poolings and heads among them."
    table = Table("Refusals", ("unit or block", "reason", "node"), rows)
    return Section("What cannot be replaced", (text,), table)


def environment(plan: Plan) -> Section:
    data, budget = plan.data, plan.budget
    threads = str(plan.threads) if plan.threads else "onnxruntime's choice"
    shares = f"{data.fit} fit, {data.select} select, {data.certify} certify"
    rows = [
        ("blockfold", plan.blockfold),
        *plan.versions.items(),
        ("Python", platform.python_version()),
        ("machine", f"{platform.system()} {platform.machine()}"),
        ("provider", plan.provider),
        ("threads", threads),
        ("budget", str(budget)),
        ("method", plan.method),
        ("judged by", f"{plan.metric} of output {plan.output}"),
        (
            "samples",
            f"{data.samples}: {shares}",
        ),
        ("seed of the split", str(data.seed)),
        ("padding", "none" if data.mask is None else f"input {data.mask}"),
        ("model, SHA-256", plan.model.sha256),
        ("data, SHA-256", data.sha256),
        ("plan, SHA-256", plan.sha256),
    ]
    if plan.skipped:
        rows.append(("passes skipped", ", ".join(plan.skipped)))
    return Section("Environment", (), Table("Environment", ("", ""), tuple(rows)))


def reproduction(command: str | None, *, made: bool) -> Section | None:
    """The command of this run, and what makes it exact."""
    if command is None:
        return None
    text = ["Decisions depend on latencies measured on the spot, everything else on the inputs."]
    commands = [command]
    if made:
        text.append(
            "Add --costs with the plan beside the model to use those measured here again; "
            "`blockfold apply` makes the file again byte for byte, without data."
        )
    return Section("Run it again", tuple(text), commands=tuple(commands))
