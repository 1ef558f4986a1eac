"""Running a graph with onnxruntime: the chosen provider, taps on inner values, fixed batches."""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from ..ir.errors import BadInput, Unsupported
from ..ir.onnx_ends import with_numpy_ends
from ..ir.onnx_file import OnnxModel

if TYPE_CHECKING:
    import onnxruntime

Feeds = Mapping[str, np.ndarray]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Short names; any other execution provider goes by onnxruntime's own name."""

FLAVOURS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
"""Distributions that all install a package named onnxruntime."""

DRIVERS = {"CUDAExecutionProvider": "libcuda.so.1" if os.name == "posix" else "nvcuda.dll"}
"""Driver libraries without which a provider cannot work, whatever the wheel offers."""


NO_KERNEL = (
    "the provider cannot run that operator in the model's types: take another --provider, or "
    "export in float32 or float16"
)


@dataclass(frozen=True)
class Runtime:
    """How graphs are run: provider by onnxruntime's name, threads (0: its default), extras."""

    provider: str = "CPUExecutionProvider"
    threads: int = 0
    provider_options: Mapping[str, str] = field(default_factory=dict)
    custom_ops: tuple[str, ...] = ()


def choose_runtime(
    provider: str | None = None,
    threads: int = 0,
    provider_options: Mapping[str, str] | None = None,
    custom_ops: Sequence[str] = (),
) -> Runtime:
    """The runtime asked for; without a wish CUDA where it works, else the CPU.

    Raises BadInput where the provider asked for is not there: never a silent fall-back.
    """
    for library in custom_ops:
        if not Path(library).is_file():
            raise BadInput(f"--custom-ops {library}: no such file; give the library's path")
    options = dict(provider_options or {})
    if provider is None:
        cuda = PROVIDERS["cuda"]
        name = cuda if _works(cuda) else PROVIDERS["cpu"]
        return Runtime(name, threads, options, tuple(custom_ops))
    name = PROVIDERS.get(provider.lower(), provider)
    available = load().get_available_providers()
    if name not in available:
        known = ", ".join(["cpu", "cuda", *available])
        raise BadInput(f"--provider {provider}: unknown to this onnxruntime; it knows {known}")
    if not _works(name):
        raise BadInput(
            f"--provider {provider}: {name} does not work on this machine (no device, driver or "
            "library); repair it or take --provider cpu"
        )
    return Runtime(name, threads, options, tuple(custom_ops))


def load() -> Any:
    """Import onnxruntime, without the warnings it prints where it finds no GPU.

    Its telemetry, on by default in some wheels, is off unless the user has set the switch.
    Raises BadInput where it cannot be imported; warns where two of its flavours are installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        with _quiet_stderr():
            import onnxruntime
    except ImportError as error:
        raise BadInput(
            f"onnxruntime cannot be imported ({error}); install one of its flavours, for instance "
            "pip install onnxruntime-gpu"
        ) from error
    installed = [name for name in FLAVOURS if _is_installed(name)]
    if len(installed) > 1:
        warnings.warn(
            f"{' and '.join(installed)} are installed together and overwrite each other's files; "
            "keep one",
            RuntimeWarning,
            stacklevel=2,
        )
    return onnxruntime


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Send what native code writes to stderr to nowhere: it logs before it can be configured."""
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _works(provider: str) -> bool:
    """Whether a session really runs on the provider: being listed does not say so."""
    ort = load()
    if provider not in ort.get_available_providers():
        return False
    if provider == PROVIDERS["cpu"]:
        return True
    if provider in DRIVERS:
        try:
            ctypes.CDLL(DRIVERS[provider])
        except OSError:
            return False
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "probe", [value], [out])
    opset = onnx.helper.make_opsetid("", 17)
    probe = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with _quiet_stderr():
        try:
            session = ort.InferenceSession(probe.SerializeToString(), options, providers=[provider])
        except Exception:  # whatever a provider raises here, it does not work
            return False
    return bool(session.get_providers()[0] == provider)


class Runner:
    """A session of a model, with any of its inner values tapped.

    `outputs` are the model's own outputs; calling the runner returns these and the taps by name.
    Where the model fixes its batch at `fixed_batch`, fewer rows are padded with copies of the last
    and what they give is cut off again. Sessions that are `pooled` share their working memory: many
    pieces of a model then need no more of it than the largest; to be timed, a session has its own.
    """

    def __init__(
        self,
        model: OnnxModel,
        runtime: Runtime,
        taps: Sequence[str] = (),
        *,
        pooled: bool = False,
    ) -> None:
        self.inputs = tuple(value.name for value in model.inputs)
        self.outputs = model.outputs
        self.fixed_batch = fixed_batch(model)
        self._echoed = [name for name in taps if name in self.inputs]
        inner = [name for name in taps if name not in self._echoed]
        self._wanted = list(dict.fromkeys([*self.outputs, *inner]))
        model, self._renamed = with_numpy_ends(_tapped(model, self._wanted[len(self.outputs) :]))
        self._fetched = [self._renamed.get(name, name) for name in self._wanted]
        self._session = open_session(model, runtime, pooled)

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run one batch: arrays (rows, ...) in, arrays by value name out.

        What the model does not take is left out: it may lack inputs of its original.
        Raises BadInput where onnxruntime refuses the data.
        """
        rows = len(next(iter(feeds.values())))
        feeds = self.taken(feeds)
        if self.fixed_batch is not None and rows != self.fixed_batch:
            feeds = {name: pad_rows(array, self.fixed_batch) for name, array in feeds.items()}
        try:
            results = self._session.run(self._fetched, self._fed(feeds))
        except Exception as error:  # onnxruntime's errors share no public base class
            raise refused(error) from error
        found = dict(zip(self._wanted, results, strict=True))
        found.update((name, feeds[name]) for name in self._echoed)
        if self.fixed_batch is not None and rows != self.fixed_batch:
            found = {name: cut_rows(array, rows, self.fixed_batch) for name, array in found.items()}
        return found

    def taken(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The feeds that the model takes."""
        return {name: feeds[name] for name in self.inputs if name in feeds}

    def run_whole(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The model's own outputs on a batch that needs no padding."""
        return dict(zip(self.outputs, self._session.run(None, self._fed(feeds)), strict=True))

    def run_only(self, feeds: dict[str, np.ndarray]) -> None:
        """Run the model's own outputs and drop them: what a timing loop needs, and no more."""
        self._session.run(None, self._fed(feeds) if self._renamed else feeds)

    def _fed(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The feeds by the names that the session has for its inputs."""
        return {self._renamed.get(name, name): array for name, array in feeds.items()}


def fixed_batch(model: OnnxModel) -> int | None:
    """The batch size a model fixes, or None where its first axes are free."""
    firsts = {value.shape[0] for value in model.inputs if value.shape}
    numbers = {dim for dim in firsts if isinstance(dim, int)}
    return numbers.pop() if len(numbers) == 1 and len(firsts) == 1 else None


def refused(error: Exception) -> BadInput:
    """What onnxruntime says of the data it was to run."""
    return BadInput(f"onnxruntime cannot run the model on this data: {_line(error)}")


def _tapped(model: OnnxModel, taps: Sequence[str]) -> OnnxModel:
    """The model with inner values as further outputs."""
    if not taps:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps)
    return OnnxModel(proto, model.folder, stamps=model.stamps)


def open_session(
    model: OnnxModel, runtime: Runtime, pooled: bool = False
) -> onnxruntime.InferenceSession:
    """A session of a model. Unsupported where none opens."""
    ort = load()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = runtime.threads
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model.folder.resolve())
    )
    if pooled:
        _open_pool()
        options.add_session_config_entry("session.use_env_allocators", "1")
    # Threads that spin after a run would slow whatever model is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        for library in runtime.custom_ops:
            options.register_custom_ops_library(library)
        session = ort.InferenceSession(
            model.serialized(),
            options,
            providers=[(runtime.provider, dict(runtime.provider_options))],
        )
    except Exception as error:  # see above
        model.require_unchanged()
        lacking = "NOT_IMPLEMENTED" in str(error)
        advice = NO_KERNEL if lacking else "custom operators need --custom-ops"
        raise Unsupported(f"onnxruntime cannot load the model: {_line(error)}; {advice}") from error
    if session.get_providers()[0] != runtime.provider:
        raise BadInput(f"{runtime.provider} could not be used for this model; take --provider cpu")
    return session


@cache
def _open_pool() -> None:
    """Make the memory on the CPU that all pooled sessions of this process share."""
    ort = load()
    kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    info = ort.OrtMemoryInfo("Cpu", kind, 0, ort.OrtMemType.DEFAULT)
    # extended by what is asked for, not by doubling: it is never given back
    ort.create_and_register_allocator(info, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """The array with copies of its last row, up to `rows` of them."""
    if len(array) == rows:
        return array
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def cut_rows(array: np.ndarray, rows: int, batch: int) -> np.ndarray:
    """What belongs to the first rows of a batch; values without a batch axis stay whole."""
    if array.ndim == 0 or len(array) % batch:
        return array
    return array[: len(array) * rows // batch]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
