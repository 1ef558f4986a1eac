"""ONNX files: read with everything checked that could hurt later, written whole or not at all.

Weights in external files stay there: a model is read without them, and they are copied tensor by
tensor when it is written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from .errors import BadInput, BlockfoldError
from .graph import Graph, Value
from .onnx_limits import require_finite_functions, require_whole
from .onnx_order import in_order
from .onnx_view import inputs_of, stored_bytes, tensor_bytes, view
from .staging import DATA_SUFFIX, unwritable, write_bytes
from .stamp import Stamp, require_unchanged

EXTERNAL = onnx.TensorProto.EXTERNAL
LONGEST_LOCATION = 1024
ADDED = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
"""Standard operators to onnxruntime at any version; it writes them into files it optimises."""

ADDED_DOMAIN = "blockfold.added"
LONGEST_INLINE_BYTES = 3 * 2**29
"""Weights inside a file with external data, all together: protobuf ends at 2 GiB."""

SHORT_BYTES = 1024
"""Weights up to here stay inside: the shapes among them must be read where types are inferred."""

ALIGNMENT_BYTES = 4096
"""Offsets of external tensors are multiples of this, so that runtimes can map them to memory."""


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A model as it was read: `proto` is never changed, edits make a new OnnxModel.

    `content` is the file's own bytes where the model is unchanged since it was read (but for the
    order of nodes, where the file's is none); `folder` is where its external data lies. `stamps`
    are of all files that it was read from, or is still.
    """

    proto: onnx.ModelProto
    folder: Path
    content: bytes | None = None
    stamps: tuple[Stamp, ...] = ()

    @cached_property
    def graph(self) -> Graph:
        return view(self.proto)

    @cached_property
    def sha256(self) -> str:
        """Hash of the model's bytes and of every external tensor, in the order of the file."""
        digest = hashlib.sha256(self.serialized())
        for tensor in self.external():
            for chunk in _chunks(self.folder, tensor):
                digest.update(chunk)
        return digest.hexdigest()

    @cached_property
    def inputs(self) -> tuple[Value, ...]:
        """What must be fed; found without the rest of the graph."""
        return inputs_of(self.proto)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.proto.graph.output)

    @property
    def opset(self) -> int:
        """Version of the main operator set."""
        return max(
            (o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), default=1
        )

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, external data included."""
        inline = len(self.content) if self.content is not None else self.proto.ByteSize()
        return inline + sum(tensor_bytes(tensor) for tensor in self.external())

    def serialized(self) -> bytes:
        """The model's bytes, those of external data not included."""
        return self.content if self.content is not None else self.proto.SerializeToString()

    def require_unchanged(self) -> None:
        """BadInput where a file of the model has changed since it was read."""
        require_unchanged(self.stamps)

    def external(self) -> Iterator[onnx.TensorProto]:
        return (t for t in self.proto.graph.initializer if t.data_location == EXTERNAL)


def read(source: str | os.PathLike[str] | onnx.ModelProto) -> OnnxModel:
    """Read and check a model from a path, or take a ModelProto as it is.

    Raises BadInput for anything that is not a whole, valid ONNX model with all its data at hand,
    Unsupported where calls of its own functions stand for too much.
    """
    stamps: list[Stamp] = []
    if isinstance(source, onnx.ModelProto):
        model = OnnxModel(source, Path.cwd())
        name = "the model given"
    else:
        path = Path(source)
        name = str(path)
        try:
            stamps.append(Stamp.of(path))
            content = path.read_bytes()
        except OSError as error:
            raise BadInput(f"{path}: cannot read the model: {error.strerror}") from error
        try:
            proto = onnx.ModelProto.FromString(content)
        except DecodeError as error:
            raise BadInput(
                f"{path}: not an ONNX model, or a truncated one; export or copy it again"
            ) from error
        model = OnnxModel(proto, path.parent, content)
    if not model.proto.graph.node or not model.proto.opset_import:
        raise BadInput(
            f"{name}: not an ONNX model: it holds no graph; give a file exported to ONNX"
        )
    try:
        located = (_locate(model.folder, tensor, name) for tensor in model.external())
        stamps += map(Stamp.of, dict.fromkeys(path for path, _ in located))
        require_whole(model.proto, name)
        require_finite_functions(model.proto, name)
        model = replace(model, proto=in_order(model.proto), stamps=tuple(stamps))
        check(model.proto)
        _ = model.graph
    except BlockfoldError:
        raise
    except onnx.checker.ValidationError as error:
        # where a name is no text the checker may have nothing to say
        reason = next(iter(str(error).splitlines()), "its checker refuses it")
        raise BadInput(f"{name}: not a valid ONNX model ({reason}); export it again") from error
    except Exception as error:  # protobuf, onnx and graphsurgeon each have their own for damage
        kind = type(error).__name__
        raise BadInput(f"{name}: a damaged ONNX model ({kind}); copy or export it again") from error
    return model


def check(proto: onnx.ModelProto) -> None:
    """ONNX's own checker, spared the external data, which it would seek in the current folder.

    It is also spared the norms that onnxruntime adds to the standard operators of any version.
    Raises onnx.checker.ValidationError.
    """
    version = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)
    added = [i for i, node in enumerate(proto.graph.node) if _is_added(node, version)]
    external = any(t.data_location == EXTERNAL for t in proto.graph.initializer)
    if not added and not external:
        onnx.checker.check_model(proto)
        return
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    for index in added:
        light.graph.node[index].domain = ADDED_DOMAIN
    light.opset_import.append(onnx.helper.make_opsetid(ADDED_DOMAIN, 1))
    for tensor in light.graph.initializer:
        if tensor.data_location == EXTERNAL:
            info = onnx.helper.make_tensor_value_info(
                tensor.name, tensor.data_type, list(tensor.dims)
            )
            if tensor.name not in {value.name for value in light.graph.input}:
                light.graph.input.append(info)
    kept = [t for t in light.graph.initializer if t.data_location != EXTERNAL]
    del light.graph.initializer[:]
    light.graph.initializer.extend(kept)
    onnx.checker.check_model(light)


def _is_added(node: onnx.NodeProto, version: int) -> bool:
    """Whether onnxruntime knows this operator and ONNX, at this version, does not."""
    return (
        node.domain in ("", "ai.onnx")
        and node.op_type in ADDED
        and not onnx.defs.has(node.op_type, version, "")
    )


def _locate(folder: Path, tensor: onnx.TensorProto, name: str = "the model") -> tuple[Path, int]:
    """File and offset of an external tensor; BadInput if it is missing or leaves the folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = folder / location
    if "\0" in location or len(location) > LONGEST_LOCATION:
        raise BadInput(f"{name}: weight {tensor.name!r} names no possible file; export it again")
    if Path(location).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise BadInput(
            f"{name}: weight {tensor.name!r} points to {location!r}, outside the model's folder; "
            "put the data file beside the model"
        )
    if not location or not path.is_file():
        raise BadInput(
            f"{name}: external data file {location!r} of weight {tensor.name!r} is missing; "
            "put it beside the model"
        )
    try:
        offset = int(entries.get("offset", "0"))
        size = tensor_bytes(tensor)
    except ValueError as error:
        raise BadInput(
            f"{name}: weight {tensor.name!r} states a broken offset or length; export it again"
        ) from error
    if size != stored_bytes(tensor):
        raise BadInput(
            f"{name}: weight {tensor.name!r} states {size} bytes for its {stored_bytes(tensor)}; "
            "export it again"
        )
    if offset < 0 or offset + size > path.stat().st_size:
        raise BadInput(
            f"{name}: external data file {location!r} ends before weight {tensor.name!r}; "
            "copy it again"
        )
    return path, offset


def _chunks(folder: Path, tensor: onnx.TensorProto, size: int = 1 << 24) -> Iterator[bytes]:
    path, offset = _locate(folder, tensor)
    left = tensor_bytes(tensor)
    with path.open("rb") as file:
        file.seek(offset)
        while left > 0:
            chunk = file.read(min(size, left))
            if not chunk:
                raise BadInput(f"{path}: cut short while in use; copy it again")
            left -= len(chunk)
            yield chunk


def numbers(model: OnnxModel, tensor: onnx.TensorProto) -> np.ndarray:
    """The numbers of a weight, read from the model's folder where they lie there."""
    if tensor.data_location != EXTERNAL:
        return onnx.numpy_helper.to_array(tensor)
    content = b"".join(_chunks(model.folder, tensor))
    held = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=content)
    return onnx.numpy_helper.to_array(held)


def write(model: OnnxModel, path: Path) -> None:
    """Write the model to `path`, with external data, if it has any, to `path` + ".data".

    There go the weights inside the file too, new maps among them, where they are too many for it.

    An unedited model without external data is written byte for byte as it was read. Meant for a
    path in a folder that `staged` gave. Raises BadInput where the disk will not take it, or the
    weights' own files have changed since the model was read.
    """
    if not any(True for _ in model.external()):
        write_bytes(path, model.serialized())
        return
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    data = path.with_name(path.name + DATA_SUFFIX)
    inline_bytes = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    is_long = inline_bytes > LONGEST_INLINE_BYTES
    try:
        with data.open("wb") as file:
            for tensor in proto.graph.initializer:
                if tensor.data_location == EXTERNAL:
                    _move(tensor, _chunks(model.folder, tensor), file, data.name)
                elif is_long and len(tensor.raw_data) > SHORT_BYTES:
                    _move(tensor, [tensor.raw_data], file, data.name)
    except OSError as error:
        raise unwritable(data, error) from error
    model.require_unchanged()
    write_bytes(path, proto.SerializeToString())


def _move(tensor: onnx.TensorProto, chunks: Iterable[bytes], file: BinaryIO, location: str) -> None:
    """Put a tensor's bytes behind those in the file."""
    file.seek(-(-file.tell() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
    start = file.tell()
    for chunk in chunks:
        file.write(chunk)
    tensor.ClearField("raw_data")
    tensor.data_location = EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", start), ("length", file.tell() - start)):
        tensor.external_data.add(key=key, value=str(value))
