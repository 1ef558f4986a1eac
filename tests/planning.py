"""A plan for tests, of which only the decisions and the model matter."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from blockfold.ir.spans import Refusal
from blockfold.passes.budget import Budget
from blockfold.passes.plan import DataRecord, Decision, ModelRecord, Plan


def plan_of(
    model_sha256: str,
    decisions: Sequence[Decision],
    tensors: bytes,
    *,
    metric: str = "accuracy",
    refusals: Sequence[Refusal] = (),
) -> Plan:
    """A plan, sealed, on 8 samples."""
    plan = Plan(
        blockfold="0.1.0",
        versions={"numpy": "2"},
        provider="CPUExecutionProvider",
        threads=1,
        batch=32,
        metric=metric,
        output="logits",
        budget=Budget.of(max_drop=0.01),
        skipped=(),
        model=ModelRecord(sha256=model_sha256, size_bytes=1, nodes=2, parameters=3),
        data=DataRecord(
            sha256="cd",
            samples=8,
            fit=2,
            select=2,
            certify=4,
            seed=0,
            fractions=(0.25, 0.25, 0.5),
            mask=None,
            random=False,
        ),
        decisions=tuple(decisions),
        refusals=tuple(refusals),
        tensors_sha256=hashlib.sha256(tensors).hexdigest(),
    )
    return plan.model_copy(update={"sha256": plan.digest()})
