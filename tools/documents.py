"""What `--json` prints: one document on stdout."""

from __future__ import annotations

import dataclasses
import json
from math import isfinite
from typing import Any

import click
from pydantic import BaseModel

from .results import Inspection


def inspection_document(found: Inspection) -> dict[str, Any]:
    measured = {} if found.survey is None else {id(r.span): r for r in found.survey.spans}
    spans = []
    for span in found.spans:
        record = dataclasses.asdict(span) | {"removed": len(span.removed)}
        record["parameters"] = found.graph.parameters(span.removed)
        redundancy = measured.get(id(span))
        if redundancy is not None:
            record |= {
                "block_redundancy": redundancy.block_redundancy,
                "cosine": redundancy.cosine,
                "block_influence": redundancy.block_influence,
                "angular_distance": redundancy.angular_distance,
                "nbl_bound": redundancy.nbl_bound,
                "affine_r2": redundancy.affine_r2 if isfinite(redundancy.affine_r2) else None,
                "identity_error": redundancy.identity_error,
                "likeness": redundancy.likeness,
            }
        spans.append(record)
    streams = [
        {
            "source": stream.chain.source,
            "sink": stream.chain.sink,
            "cuts": [cut.values for cut in stream.chain.cuts],
            "units": [{"name": u.name, "parameters": u.parameters} for u in stream.units],
            "blocks": [dataclasses.asdict(block) for block in stream.blocks],
        }
        for stream in found.anatomies
    ]
    refusals = [dataclasses.asdict(refusal) for refusal in found.refusals]
    return {
        "model_sha256": found.model.sha256,
        "streams": streams,
        "spans": spans,
        "refusals": refusals,
        "similarities": [] if found.survey is None else list(found.survey.similarities),
        "samples": None
        if found.samples is None
        else dict(zip(("held", "due"), found.samples, strict=True)),
        "random": found.random,
    }


def print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
