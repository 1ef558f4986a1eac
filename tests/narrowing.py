"""Networks in other types: a float32 one made float16 or bfloat16 all through."""

from __future__ import annotations

import numpy as np
import onnx
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from blockfold.tests.networks import FLOAT, Arrays

DTYPES: dict[int, np.dtype[np.generic]] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(bfloat16),
}


def narrowed(model: onnx.ModelProto, kind: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """The model with every float32 weight, input, output and Cast in another type."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for value in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = kind
    for tensor in made.graph.initializer:
        if tensor.data_type == FLOAT:
            array = numpy_helper.to_array(tensor)
            if kind == TensorProto.FLOAT16:
                array = array.clip(-65504, 65504)  # masks add numbers beyond it
            array = array.astype(DTYPES[kind])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in made.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = kind
    return made


def halved(feeds: Arrays) -> Arrays:
    """Floats as float16, anything else as it is."""

    def half(array: NDArray[np.generic]) -> NDArray[np.generic]:
        return array.astype(np.float16) if array.dtype == np.float32 else array

    return {name: half(array) for name, array in feeds.items()}
