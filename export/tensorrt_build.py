"""From an ONNX graph to the bytes of a plan, by the builder of TensorRT or of TensorRT-RTX.

Either module comes in as an argument, since their Python interfaces are one and what differs are the GPUs. Precision
is the graph's own: networks are strongly typed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands.errors import reason
from commands.progress import progress_bar
from commands.whole_files import whole_file
from diffusion.errors import InputError
from export.tensorrt_options import BuildSettings
from runtime.engines.tensorrt_modules import collecting_log, collector_paused

# Flags of `BuilderFlag`, by what they are asked for as.
_FLAG_OF = {"version_compatible": "VERSION_COMPATIBLE", "strip": "STRIP_PLAN", "refit": "REFIT"}


@dataclass(frozen=True)
class Built:
    """A plan and how it came about.

    Attributes:
        plan: its bytes.
        version: of the builder.
        flags: names of `BuilderFlag` that were set.
        optimization_level: that was used.
        timing_cache_sha256: of the cache file as the build left it.
        layers: the engine inspector's JSON, if it was asked for.
    """

    plan: bytes = field(repr=False)
    version: str
    flags: tuple[str, ...]
    optimization_level: int | None
    timing_cache_sha256: str | None
    layers: str | None


@collector_paused()
def build_plan(trt: Any, network: bytes, settings: BuildSettings, source: str) -> Built:
    """Parse, configure and build.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        network: the ONNX file, with the names of `export.network_io`.
        settings: how the plan is built.
        source: what to call the network in an error.

    Raises:
        InputError: an operator that the parser does not know, with its node; or what the builder refuses, in its words.
    """
    try:
        return _build(trt, network, settings, source)
    except InputError as error:
        refused = str(error)
    # Raised anew: its traceback would keep the builder alive.
    raise InputError(refused)


def _build(trt: Any, network: bytes, settings: BuildSettings, source: str) -> Built:
    log = collecting_log(trt, settings.title if settings.verbose else None)
    builder = trt.Builder(log)
    parsed = _parse(trt, builder, network, log, settings.title, source)
    config = builder.create_builder_config()
    _configure(trt, config, settings, log)
    if not settings.static:
        _add_profiles(builder, config, settings, log)
    monitor = _make_progress_monitor(trt)
    config.progress_monitor = monitor
    with timing_cache(config, settings.timing_cache) as cache:
        with monitor.bar():
            plan = builder.build_serialized_network(parsed, config)
        if plan is None:
            raise InputError(_refusal(settings, source, log.errors))
        content = bytes(plan)
        cache.save()
    return Built(
        content,
        str(trt.__version__),
        tuple(name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)),
        int(config.builder_optimization_level),
        cache.sha256,
        _layers(trt, content, log, settings) if settings.layers else None,
    )


@collector_paused()
def check_operators(trt: Any, network: bytes, title: str, source: str) -> None:
    """Parse a network and forget it. Raises InputError as `build_plan`."""
    log = collecting_log(trt)
    try:
        _parse(trt, trt.Builder(log), network, log, title, source)
        return
    except InputError as error:
        refused = str(error)
    raise InputError(refused)


def _parse(trt: Any, builder: Any, network: bytes, log: Any, title: str, source: str) -> Any:
    # TensorRT 11 knows no other networks, and drops the flag one day.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    definition = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(definition, log)
    if parser.parse(network):
        return definition
    errors = [parser.get_error(place) for place in range(parser.num_errors)]
    for error in errors:
        if error.node_operator():
            name = error.node_name() or f"number {error.node()}"
            raise InputError(
                f"{source}: {title} cannot take the node {name} of kind {error.node_operator()} "
                f"({reason(error.desc())}); export the network with standard operators of opset 18"
            )
    raise InputError(f"{source}: {title} cannot parse the graph ({reason(log.last)}); export it again with --opset 18")


def _configure(trt: Any, config: Any, settings: BuildSettings, log: Any) -> None:
    # On by default, it rounds the inputs of float32 products to 10 bits: more than the tolerance.
    config.clear_flag(trt.BuilderFlag.TF32)
    if settings.is_rtx:
        # Else a call may allocate, and a call that allocates cannot be captured in a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(settings.capabilities)
        for place, capability in enumerate(settings.capabilities):
            member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
            if member is None or not config.set_compute_capability(member, place):
                raise InputError(
                    f"--compute-capabilities: {settings.title} {trt.__version__} does not build for {capability}; "
                    "leave it out"
                )
    for name, flag in _FLAG_OF.items():
        if getattr(settings, name):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if settings.hardware_compatibility != "none":
        level = getattr(trt.HardwareCompatibilityLevel, settings.hardware_compatibility.upper(), None)
        if level is None:
            raise InputError(
                f"--hardware-compatibility: {settings.title} {trt.__version__} has no "
                f"{settings.hardware_compatibility}; install a newer one, or leave it out"
            )
        config.hardware_compatibility_level = level
        if config.hardware_compatibility_level != level:
            raise InputError(
                f"--hardware-compatibility: {settings.title} does not take {settings.hardware_compatibility} here "
                f"({reason(log.last)}); leave it out"
            )
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.layers is not None:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _add_profiles(builder: Any, config: Any, settings: BuildSettings, log: Any) -> None:
    from export.network_io import T, X  # needs onnx, whose absence the command reports

    for batches in settings.profiles:
        profile = builder.create_optimization_profile()
        sizes = (batches.min, batches.opt, batches.max)
        profile.set_shape(X, *[(size, *settings.chw) for size in sizes])
        profile.set_shape(T, *[(size,) for size in sizes])
        for name, shape in settings.conditions.items():
            profile.set_shape(name, *[(size, *shape) for size in sizes])
        if config.add_optimization_profile(profile) < 0:
            raise InputError(
                f"batch profile {batches.min},{batches.opt},{batches.max}: {settings.title} refuses it "
                f"({reason(log.last)}); give other batches"
            )


def _refusal(settings: BuildSettings, source: str, errors: Sequence[str]) -> str:
    said = reason(next((line for line in errors if "OutOfMemory" in line), errors[-1] if errors else "no reason"))
    largest = max(batches.max for batches in settings.profiles)
    if "OutOfMemory" in said or "out of memory" in said:
        return (
            f"{source}: a batch of {largest} needs more memory than {settings.title} may take ({said}); "
            "give a smaller --max-batch or --batch, or a larger --workspace"
        )
    return f"{source}: {settings.title} cannot build it for batches up to {largest} ({said}); see --verbose"


def _layers(trt: Any, plan: bytes, log: Any, settings: BuildSettings) -> str:
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise InputError(f"--export-layers: {settings.title} cannot read its plan back ({reason(log.last)})")
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return json.dumps(json.loads(information), indent=1)


def _make_progress_monitor(trt: Any) -> Any:
    """An `IProgressMonitor` whose `bar()` is a context in which steps are shown.

    Phases begin inside phases, so the total grows as the builder goes on. Callbacks may come from several threads:
    each changes a number and draws, which tqdm locks.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._bar: Any = None

        @contextlib.contextmanager
        def bar(self) -> Iterator[None]:
            with progress_bar(0, "building", unit="step") as self._bar:
                yield

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._bar.total += num_steps
            self._bar.refresh()

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._bar.update()
            return True

    return Monitor()


class TimingCache:
    """A cache that a configuration uses; `save` writes back what the build added."""

    def __init__(self, config: Any, path: Path | None) -> None:
        self._config, self._path = config, path
        self.sha256: str | None = None
        if path is None:
            return
        content = path.read_bytes() if path.is_file() else b""
        self._cache = config.create_timing_cache(content)
        # Of another version or GPU, or damaged: it is only a cache, and a fresh one takes its place.
        if content and (self._cache is None or not config.set_timing_cache(self._cache, ignore_mismatch=False)):
            content, self._cache = b"", config.create_timing_cache(b"")
        if not content:
            config.set_timing_cache(self._cache, ignore_mismatch=False)

    def save(self) -> None:
        """Write the file, whole."""
        if self._path is None:
            return
        content = bytes(self._config.get_timing_cache().serialize())
        with whole_file(self._path) as temporary:
            temporary.write_bytes(content)
        self.sha256 = hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def timing_cache(config: Any, path: Path | None) -> Iterator[TimingCache]:
    """Attach a cache file to a builder's configuration, for this process alone until the end.

    Args:
        config: the builder's.
        path: the file, made if missing; None for no cache at all.

    Raises:
        InputError: its folder cannot be written.
    """
    if path is None:
        yield TimingCache(config, None)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"{path}: its folder cannot be written ({error.strerror}); give --timing-cache none, or another file"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would each forget what the other measured
        yield TimingCache(config, path)
