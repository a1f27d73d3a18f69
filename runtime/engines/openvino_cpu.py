"""OpenVINO on the CPU: engines that `export.to_openvino` made, and ONNX files as they are."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from commands.errors import DeviceUnavailableError, reason
from diffusion.conditions import Condition
from diffusion.errors import InputError
from diffusion.process import METADATA_KEY, Process
from runtime.engines.cache_folder import compile_cached
from runtime.engines.condition_inputs import stored_conditions, without_conditions
from runtime.engines.interface import Engine
from runtime.engines.network_contract import (
    FedTimesteps,
    call_failed,
    check_shapes,
    only_output,
    process_of_onnx,
    tell_inputs_apart,
    timesteps_shape,
)
from runtime.engines.onnx_file import OnnxFile, read_onnx
from runtime.engines.verification import ensure_verified
from runtime.formats.openvino_description import PRECISION_HINTS, REBUILD, OpenVinoDescription
from runtime.formats.place import Place
from runtime.formats.sidecar import Sidecar, read_hashed, read_sidecar, weights_path
from runtime.formats.tensor_spec import TensorSpec
from runtime.process_flags import ProcessFlags

MAX_COMPILED = 3
"""Models kept for one engine. A chain keeps its own as long as it is kept itself."""

OpenVinoSidecar = Sidecar[OpenVinoDescription]
_CONDITION_TYPES = {"int64": "i64", "float32": "f32"}
_TYPES = {"f32": np.float32, "f64": np.float64, "i64": np.int64, "i32": np.int32}


class OpenVinoEngine(Engine):
    """An ε-network run by OpenVINO, compiled anew for each batch size; the `MAX_COMPILED` used last are kept.

    One stream with all threads, because a chain waits for each of its network calls; and threads are not pinned:
    beside anything else on the same cores, pinned ones wait for it while others idle.

    Args:
        path: `unet.xml` with its `.bin` and sidecar, or a float32 ONNX file.
        threads: 0 for as many as this process may use.
        flags: what an ONNX file does not say of its process, and preferences for variance and clip.
        sidecar: instead of the one beside the file, of an exporter that has yet to verify it.
        file: what `read_onnx` said of an ONNX file, where it was asked already.

    Attributes:
        sidecar: the engine's; None for an ONNX file.

    Raises:
        InputError: files that are missing, changed, of another version, or no ε-network.
        DeviceUnavailableError: the engine's precision is not this CPU's.
    """

    path: Path

    def __init__(
        self,
        path: Path,
        threads: int = 0,
        flags: ProcessFlags | None = None,
        sidecar: OpenVinoSidecar | None = None,
        file: OnnxFile | None = None,
    ) -> None:
        self.path = path
        self._threads = threads or len(os.sched_getaffinity(0))
        self._core = ov.Core()
        self._cached = sidecar is None
        flags = flags or ProcessFlags()
        self.process: Process
        self.sidecar: OpenVinoSidecar | None = None
        if path.suffix == ".onnx":
            self._read_onnx(flags, file or read_onnx(path))
        else:
            self.sidecar = sidecar or read_sidecar(path, OpenVinoDescription)
            self._read_engine(flags, self.sidecar)
        self.name = f"OpenVINO {ov.__version__.partition('-')[0]} ({self.precision}, CPU)"
        self._compiling = threading.Lock()
        self._compiled: OrderedDict[int, ov.CompiledModel] = OrderedDict()  # what was used longest ago first

    def _read_onnx(self, flags: ProcessFlags, file: OnnxFile) -> None:
        self.precision, self.sha256, self.has_digest = file.precision, file.sha256, file.has_digest
        if self.precision != "fp32":
            # It would compute fp16 in float32, and bf16 in bf16 though the hint says, and reads back as, float32.
            way_out = "or give `backend=onnxruntime`"
            if self.precision == "bf16":
                way_out = (
                    f"with --bf16 for that precision, {way_out}, which on the CPU runs what only stores or casts bf16"
                )
            raise InputError(
                f"{self.path}: is in {self.precision}, which OpenVINO does not run as it is, expected float32; "
                f"make an engine from the checkpoint with `{REBUILD}`, {way_out}"
            )
        try:
            self._model = self._core.read_model(str(self.path))
        except RuntimeError as error:
            raise InputError(
                f"{self.path}: OpenVINO cannot read it as an ONNX model ({reason(error)}); "
                "make one with `python -m export.to_onnx`, or give `backend=onnxruntime`"
            ) from error
        file.check_unchanged()
        place = ["framework", METADATA_KEY]  # where OpenVINO keeps the metadata of an ONNX file
        try:
            metadata = self._model.get_rt_info(place).astype(str) if self._model.has_rt_info(place) else None
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}, metadata {METADATA_KEY}: not UTF-8 ({error}); export again") from None
        prediction = self._find_tensors(flags, stored_conditions(self.path, metadata))
        self.process = process_of_onnx(file, metadata, self._x, flags)
        check_shapes(self.path, self.process, self._x, prediction)

    def _read_engine(self, flags: ProcessFlags, sidecar: OpenVinoSidecar) -> None:
        self.precision = sidecar.engine.precision
        check_precision(self._core, self.precision, str(self.path))
        network = read_hashed(self.path, self.path, sidecar.sha256, REBUILD)
        weights_sha256 = sidecar.engine.weights_sha256
        # Constants are read from these bytes as they are, for as long as the model lives.
        self._weights = read_hashed(self.path, weights_path(self.path), weights_sha256, REBUILD)
        # The .xml of two trainings of one network is the same.
        self.sha256 = hashlib.sha256(f"{sidecar.sha256} {weights_sha256}".encode()).hexdigest()
        try:
            self._model = self._core.read_model(network.tobytes(), ov.Tensor(self._weights, shared_memory=True))
        except RuntimeError as error:  # the bytes are the exporter's, so the versions do not fit
            raise InputError(
                f"{self.path}: OpenVINO {ov.__version__} cannot read what {sidecar.engine.builder} wrote "
                f"({reason(error)}); make it again with `{REBUILD}`"
            ) from error
        prediction = self._find_tensors(flags, sidecar.process.conditions)
        self.process = flags.applied_to(sidecar.process, str(self.path))
        check_shapes(self.path, self.process, self._x, prediction)

    def _find_tensors(self, flags: ProcessFlags, conditions: Sequence[Condition]) -> TensorSpec:
        inputs = [_spec(entry) for entry in self._model.inputs]
        inputs = without_conditions(self.path, inputs, conditions, _CONDITION_TYPES)
        self._x, self._t = tell_inputs_apart(self.path, inputs, "f32", _TYPES)
        self.shares_timestep = self._t.is_shared_by(self._x)
        outputs = [_spec(entry) for entry in self._model.outputs]
        self._output_place, prediction = only_output(self.path, outputs, "f32", flags.output_name)
        return prediction

    def batch_range(self) -> tuple[int, int | None]:
        """As `Engine.batch_range`: one batch alone where the file fixes it."""
        return self._x.batch_range()

    def _bind(
        self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray, *conditions: np.ndarray
    ) -> Callable[[], None]:
        # OpenVINO reads and writes the buffers themselves.
        fed_t = FedTimesteps(self.path, self._t, t, self._x, _TYPES[self._t.element_type])
        request = self._compile(x.shape[0]).create_infer_request()
        request.set_tensor(self._x.name, ov.Tensor(x, shared_memory=True))
        request.set_tensor(self._t.name, ov.Tensor(fed_t.array, shared_memory=True))
        for of, each in zip(self.process.conditions, conditions, strict=True):
            request.set_tensor(of.name, ov.Tensor(each, shared_memory=True))
        request.set_output_tensor(self._output_place, ov.Tensor(prediction, shared_memory=True))
        run = request.infer
        kept = (x, t, prediction, conditions)  # the request's tensors point into them

        def call() -> None:
            fed_t.fill()
            try:
                run(share_outputs=True)  # else a copy of the prediction is returned as well
            except RuntimeError as error:
                raise call_failed(self.path, len(kept[0]), reason(error)) from error

        return call

    def padded_batch(self, num: int) -> int:
        """The size that `num` samples are called in: 1 to 8, 10, 12, 14, 16, 20, 24, … so that few are compiled.

        A compiled model takes as much memory as the weights and seconds to make; less than a fifth of its slots is
        idle. It depends on `num` alone, so that equal requests are equal calls.
        """
        step = 1 << max(0, (num - 1).bit_length() - 3)
        return -(-num // step) * step

    def compiled(self, batch_size: int, options: Mapping[str, Any] | None = None) -> ov.CompiledModel:
        """The network as it is run at a batch size; further options are for measuring."""
        model = self._model.clone()
        t_shape = list(timesteps_shape(self._t, self._x, batch_size))
        shapes = {of.name: [batch_size, *of.shape] for of in self.process.conditions}
        model.reshape({self._x.name: [batch_size, *self.process.sample.chw], self._t.name: t_shape, **shapes})
        hint = PRECISION_HINTS[self.precision]
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._threads,
            "ENABLE_CPU_PINNING": False,
            **(options or {}),
        }
        key = json.dumps([self.sha256, batch_size, settings, ov.__version__, _cpu_facts(self._core)])

        def compile_in(folder: Path | None) -> ov.CompiledModel:
            cache = {} if folder is None else {"CACHE_DIR": str(folder)}
            return self._core.compile_model(model, "CPU", settings | cache)

        try:
            compiled = compile_cached(key, compile_in) if self._cached else compile_in(None)
        except RuntimeError as error:
            raise InputError(
                f"{self.path}: OpenVINO cannot compile it for a batch of {batch_size} ({reason(error)}); "
                "try a smaller `batch_size`, or export again"
            ) from error
        sample = self.process.sample
        expected = [batch_size, self.process.prediction_channels, sample.height, sample.width]
        made = compiled.outputs[self._output_place].get_partial_shape()
        if made.is_dynamic or list(made.to_shape()) != expected:
            raise InputError(
                f"{self.path}: for a batch of {batch_size} OpenVINO makes a prediction of shape {made}, expected "
                f"{expected}; give `backend=onnxruntime`, or export again with a dynamic first axis"
            )
        found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if found != hint:
            raise DeviceUnavailableError(
                f"{self.path}: asked for {hint}, OpenVINO runs it in {found} on this CPU; use `backend=onnxruntime`"
            )
        return compiled

    def _compile(self, batch_size: int) -> ov.CompiledModel:
        with self._compiling:  # one thread at a time: a second one that wants the same size finds it made
            if batch_size not in self._compiled:
                while len(self._compiled) >= MAX_COMPILED:
                    self._compiled.popitem(last=False)
                self._compiled[batch_size] = self.compiled(batch_size)
            self._compiled.move_to_end(batch_size)
            return self._compiled[batch_size]


def open_openvino(
    path: Path, threads: int = 0, flags: ProcessFlags | None = None, file: OnnxFile | None = None
) -> OpenVinoEngine:
    """Open an engine or an ONNX file, and verify an engine that has not been verified on such a CPU.

    Args:
        path, threads, flags, file: as `OpenVinoEngine`'s.

    Raises:
        InputError, DeviceUnavailableError: as `OpenVinoEngine`.
        VerificationError: the engine differs from its reference on this CPU.
    """
    engine = OpenVinoEngine(path, threads, flags, file=file)
    sidecar = engine.sidecar
    if sidecar is not None:
        ensure_verified(engine, path, sidecar, place_here(), sidecar.engine.verified_on)
    return engine


def place_here() -> Place:
    """This CPU and this OpenVINO: engines compute the same wherever these are the same."""
    core = ov.Core()
    name, capabilities = (core.get_property("CPU", key) for key in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES"))
    return Place(f"{name} ({', '.join(sorted(capabilities))})", None, f"OpenVINO {ov.__version__}")


def check_precision(core: ov.Core, precision: str, what: str) -> None:
    """Raises DeviceUnavailableError if the CPU would only emulate the precision."""
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        cpu = core.get_property("CPU", "FULL_DEVICE_NAME")
        raise DeviceUnavailableError(
            f"{what}: needs bf16 instructions (AVX512-BF16 or AMX-BF16), and {cpu} has none; "
            f"use an fp32 engine here: `{REBUILD}` without --bf16, or unet.onnx"
        )


def _cpu_facts(core: ov.Core) -> list[Any]:
    # A home folder may be shared by machines with other instructions.
    names = ("FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE", "OPTIMIZATION_CAPABILITIES")
    return [core.get_property("CPU", name) for name in names]


def _spec(entry: ov.ConstOutput) -> TensorSpec:
    shape = entry.get_partial_shape()
    if shape.rank.is_dynamic:
        return TensorSpec(entry.get_any_name(), entry.get_element_type().get_type_name(), ())
    sizes = tuple(dim.get_length() if dim.is_static else "N" if not i else "?" for i, dim in enumerate(shape))
    return TensorSpec(entry.get_any_name(), entry.get_element_type().get_type_name(), sizes)
