"""A plan that does not fit, is broken or was tampered with is one clear line."""

from __future__ import annotations

from typing import Any

from blockfold.tests.tools.harness import (
    network,
)
from blockfold.tests.tools.place import (
    BAD_INPUT,
    Cases,
    Place,
    Words,
)

case = Cases()


def widen(plan: dict[str, Any]) -> None:
    plan["decisions"][0]["blocks"] = 1.5


@case(BAD_INPUT, "another model", "give the original")
def plan_of_another_model(place: Place) -> Words:
    return place.apply(place.plan(), model=place.onnx(network(seed=5)))


@case(BAD_INPUT, "another model", "give the original")
def edited_plan_of_another_model(place: Place) -> Words:
    other = place.onnx(network(seed=5))
    return place.apply(place.plan(widen), "--data", place.data, model=other)


@case(BAD_INPUT, "p.plan.json", "edited", "give --data")
def edited_plan_without_data(place: Place) -> Words:
    return place.apply(place.plan(widen))


@case(BAD_INPUT, "blocks.2", "'elsewhere'", "inspect")
def edited_plan_names_an_unknown_value(place: Place) -> Words:
    plan = place.plan(lambda content: content["decisions"][0].update(exit="elsewhere"))
    return place.apply(plan, "--data", place.data)


@case(BAD_INPUT, "judged by 'wicked:f'", "no plan may load code", "--metric")
def plan_names_code(place: Place) -> Words:
    plan = place.plan(lambda content: content.update(metric="wicked:f"))
    return ["verify", place.model, place.small, "--plan", plan, "--data", place.data]


@case(BAD_INPUT, "p.plan.json", "cannot read the plan", "No such file")
def plan_is_missing(place: Place) -> Words:
    return place.apply(place.folder / "p.plan.json")


@case(BAD_INPUT, "p.plan.json", "not a plan")
def plan_is_broken(place: Place) -> Words:
    plan = place.plan()
    plan.write_bytes(plan.read_bytes()[:-20])
    return place.apply(plan)


@case(BAD_INPUT, "p.plan.json", "not a plan")
def plan_is_not_text(place: Place) -> Words:
    plan = place.plan()
    plan.write_bytes(bytes(range(256)))
    return place.apply(plan)


@case(BAD_INPUT, "p.plan.json", "not a plan", "decisions")
def plan_lacks_a_key(place: Place) -> Words:
    return place.apply(place.plan(lambda content: content.pop("decisions")))


@case(BAD_INPUT, "p.plan.json", "not a plan", "surprise", "not permitted")
def plan_has_an_unknown_key(place: Place) -> Words:
    return place.apply(place.plan(lambda content: content.update(surprise=1)))


@case(BAD_INPUT, "p.plan.json", "not a plan", "decisions.0.surprise", "not permitted")
def decision_has_an_unknown_key(place: Place) -> Words:
    return place.apply(place.plan(lambda content: content["decisions"][0].update(surprise=1)))


@case(BAD_INPUT, "p.plan.json", "not a plan", "schema_version")
def plan_of_another_schema(place: Place) -> Words:
    return place.apply(place.plan(lambda content: content.update(schema_version=2)))


@case(BAD_INPUT, "p.plan.safetensors", "another plan", "together")
def tensors_were_tampered_with(place: Place) -> Words:
    plan = place.plan()
    tensors = plan.with_suffix(".safetensors")
    content = bytearray(tensors.read_bytes())
    content[-3] ^= 1
    tensors.write_bytes(content)
    return place.apply(plan)


@case(BAD_INPUT, "p.plan.safetensors", "broken", "copy")
def tensors_are_truncated(place: Place) -> Words:
    plan = place.plan()
    tensors = plan.with_suffix(".safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-9])
    return place.apply(plan)


@case(BAD_INPUT, "p.plan.safetensors", "cannot read", "together")
def tensors_are_missing(place: Place) -> Words:
    plan = place.plan()
    plan.with_suffix(".safetensors").unlink()
    return place.apply(plan)


@case(BAD_INPUT, "nowhere.json", "cannot read the plan", "No such file")
def costs_are_missing(place: Place) -> Words:
    return place.optimize("--costs", place.folder / "nowhere.json")


@case(BAD_INPUT, "--costs", "no measured costs")
def costs_of_a_plan_without_any(place: Place) -> Words:
    plan = place.plan(lambda content: content.update(costs=None))
    return place.optimize("--costs", plan)


@case(BAD_INPUT, "different inputs or outputs", "compared")
def verify_two_strangers(place: Place) -> Words:
    proto = network()
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "scores"
    return ["verify", place.model, place.onnx(proto), "--data", place.data]


test_it_is_one_clear_line = case.test()
