"""Units and blocks: how many there are, what they are called, what share of a block a unit is."""

from __future__ import annotations

import onnx
import pytest

from blockfold.ir.blocks import Anatomy, anatomy
from blockfold.ir.cuts import find_chains
from blockfold.ir.onnx_file import read
from blockfold.tests.networks import (
    built,
    densenet_like,
    masked_encoder,
    residual_cnn,
    residual_mlp,
)


def of(model: onnx.ModelProto) -> Anatomy:
    graph = read(model).graph
    return anatomy(graph, find_chains(graph)[0])


def ranges(stream: Anatomy) -> list[tuple[int, int]]:
    return [(block.start, block.stop) for block in stream.blocks]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_repeating_units_are_blocks(count: int) -> None:
    stream = of(residual_mlp(count))
    assert ranges(stream) == [(i, i + 1) for i in range(count)]
    assert [block.name for block in stream.blocks] == [f"blocks.{i}" for i in range(count)]


@pytest.mark.parametrize("count", [2, 3])
def test_attention_and_mlp_together_are_one_block(count: int) -> None:
    stream = of(masked_encoder(count))
    assert ranges(stream) == [(2 * i, 2 * i + 2) for i in range(count)]
    assert [block.name for block in stream.blocks] == [f"layer.{i}" for i in range(count)]
    assert [unit.name for unit in stream.units[:2]] == ["layer.0.attention", "layer.0.mlp"]


def test_stages_of_different_width_have_blocks_of_their_own() -> None:
    stream = of(residual_cnn((4, 6), 3))
    assert ranges(stream) == [(1, 2), (2, 3), (3, 4), (5, 6), (6, 7), (7, 8)]


def test_a_lone_residual_unit_is_a_block() -> None:
    """The planted block does not repeat, yet its sum joins two values of the stream."""
    assert ranges(of(residual_mlp(3, affine=(1,)))) == [(0, 1), (1, 2), (2, 3)]
    assert ranges(of(residual_mlp(1))) == [(0, 1)]


def test_a_head_and_a_network_without_residuals_have_no_block() -> None:
    assert ranges(of(densenet_like())) == []
    assert len(of(built("residual_mlp")).units) == 6


def test_blocks_without_scopes_are_numbered() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(residual_mlp(3))
    for node in model.graph.node:
        node.name = ""
    stream = of(model)
    assert [block.name for block in stream.blocks] == ["block 0", "block 1", "block 2"]
    assert stream.units[0].name == "unit 0"


def test_parameters_and_shares_are_counted() -> None:
    stream = of(masked_encoder(2, d=8))
    attention, mlp = 4 * (8 * 8 + 8), 8 * 16 + 16 + 16 * 8 + 8
    sizes = [unit.parameters for unit in stream.units]
    # the last attention is followed by the rows that the pooler picks, then by its matrix
    assert sizes == [attention, mlp, attention, mlp, 1, 8 * 5 + 5]
    assert stream.block_share(0, 2) == pytest.approx(1)
    assert stream.block_share(0, 4) == pytest.approx(2)
    assert stream.block_share(0, 1) == pytest.approx(attention / (attention + mlp))
    assert stream.block_share(4, 6) == 0


def test_halves_that_differ_only_by_a_view_are_two_halves_of_one_block() -> None:
    """As in an MLP-Mixer: mix tokens between two transpositions, then channels without."""
    lines, stream = [], "x"
    for i in range(3):
        lines += [
            f"t{i} = Transpose <perm: ints = [0, 2, 1]> ({stream})",
            f"a{i} = MatMul (t{i}, w)",
            f"b{i} = Relu (a{i})",
            f"c{i} = MatMul (b{i}, w)",
            f"d{i} = Transpose <perm: ints = [0, 2, 1]> (c{i})",
            f"e{i} = Add ({stream}, d{i})",
            f"f{i} = MatMul (e{i}, w)",
            f"g{i} = Relu (f{i})",
            f"h{i} = MatMul (g{i}, w)",
            f"s{i} = Add (e{i}, h{i})",
        ]
        stream = f"s{i}"
    lines.append(f"y = Relu ({stream})")
    text = "\n".join(lines)
    weight = ", ".join(["0.5"] * 16)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        f"mixer (float[n, 4, 4] x) => (float[n, 4, 4] y) <float[4, 4] w = {{{weight}}}> "
        f"{{\n{text}\n}}"
    )
    assert ranges(of(model)) == [(0, 2), (2, 4), (4, 6)]
