"""Ways to run the same checkpoint: diffusers, torch.compile, a plain ONNX Runtime loop, and our chain on every backend.

Each peer samples by Algorithm 2 with the same timesteps: `SPACING`, whatever the checkpoint says, because it ends at 0,
after which none of them adds noise. The command compares the timesteps that they visit.

Run as a program, this is one peer in a process of its own, so that start-up time and memory are its own too. It reads
one command a line from standard input and answers with one JSON object a line on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from commands.errors import DeviceUnavailableError
from commands.system import seconds_since_process_start
from diffusion.normal import draw_number, normal_batch
from diffusion.process import Process
from diffusion.samplers import make_table
from diffusion.step_table import COLUMNS

SEED = 0
SPACING = "leading"
REFERENCE = "diffusers"


class Peer(Protocol):
    """One way to sample, bound to a batch and a number of steps.

    Attributes:
        timesteps: that a chain visits, in its order.
    """

    timesteps: list[int]

    def first_step(self) -> None:
        """One step of a chain: what ends the start-up."""

    def chain(self) -> None:
        """Sample a batch with the peer's own noise: what is timed."""

    def network(self) -> None:
        """As many network calls as `chain` makes, and nothing else."""

    def images(self) -> np.ndarray:
        """x_0, float32 [N, C, H, W] in [−1, 1], from the noise of seed 0 and sample indices 0..N−1."""


class OurChain:
    """Our chain with the engine at a path; `backend` says which library runs an ONNX file."""

    def __init__(self, path: Path, batch_size: int, num_steps: int, threads: int, backend: str = "auto") -> None:
        from runtime.chain.host import HostChain
        from runtime.engines.opening import open_engine

        engine = open_engine(path, threads=threads, backend=backend)
        self._table = make_table(engine.process, num_steps=num_steps, spacing=SPACING)
        self.timesteps = self._table.timesteps.tolist()
        self._chain = HostChain(engine, self._table, batch_size, threads=threads)
        shape = self._chain.x.shape
        prediction = np.zeros((batch_size, engine.process.prediction_channels, *shape[2:]), np.float32)
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        self._call = engine.bind(x, np.full(batch_size, 500.0, np.float32), prediction)

    def first_step(self) -> None:
        self._begin()
        self._chain.step()

    def _begin(self) -> None:
        num = len(self._chain.x)
        self._chain.begin([SEED] * num, list(range(num)))

    def chain(self) -> None:
        self._begin()
        self._chain.run()

    def network(self) -> None:
        for _ in range(len(self._table)):
            self._call()

    def images(self) -> np.ndarray:
        self.chain()
        return np.clip(self._chain.x, -1.0, 1.0)


class PlainOnnxLoop:
    """A straightforward loop: `session.run`, the posterior and `standard_normal` in NumPy."""

    def __init__(self, path: Path, batch_size: int, num_steps: int, threads: int) -> None:
        import onnxruntime as ort

        from diffusion.process import METADATA_KEY

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        process = Process.from_json_text(self._session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        table = make_table(process, num_steps=num_steps, spacing=SPACING)
        self.timesteps, self._clip, self._learned = table.timesteps.tolist(), table.clip, table.learned
        self._rows = [dict(zip(COLUMNS, row, strict=True)) for row in table.cast()]
        self._shape = (batch_size, *process.sample.chw)
        self._rng = np.random.default_rng(0)

    def _own_noise(self, draw: int) -> np.ndarray:
        return self._rng.standard_normal(self._shape, dtype=np.float32)

    def _run(self, noise: Callable[[int], np.ndarray], num_steps: int | None = None) -> np.ndarray:
        x = noise(draw_number(None))
        for timestep, row in list(zip(self.timesteps, self._rows, strict=True))[:num_steps]:
            t = np.full(self._shape[0], timestep, np.float32)
            (prediction,) = self._session.run(None, {"x": x, "t": t})
            p, w = prediction[:, : x.shape[1]], prediction[:, x.shape[1] :]
            x_start = np.clip(row["u"] * x + row["v"] * p, -self._clip, self._clip)
            x = row["a"] * x + row["q"] * p + row["b"] * x_start
            if row["s"] != 0:
                noise_std = row["s"] * np.exp(row["k"] * w) if self._learned else row["s"]
                x = x + noise_std * noise(draw_number(timestep))
        return x

    def first_step(self) -> None:
        self._run(self._own_noise, 1)

    def chain(self) -> None:
        self._run(self._own_noise)

    def network(self) -> None:
        feed = {"x": self._own_noise(0), "t": np.full(self._shape[0], 500.0, np.float32)}
        for _ in range(len(self._rows)):
            self._session.run(None, feed)

    def images(self) -> np.ndarray:
        return np.clip(self._run(lambda draw: shared_noise(self._shape, draw)), -1.0, 1.0)


class Diffusers:
    """diffusers' `DDPMPipeline`, eager or compiled, in float32 or under bf16 autocast.

    Args:
        compiled: `torch.compile` with weights frozen, in the channels-last layout.
        bf16: run the network under CPU autocast to bf16.
    """

    def __init__(
        self, path: Path, batch_size: int, num_steps: int, threads: int, compiled: bool = False, bf16: bool = False
    ) -> None:
        import torch
        from diffusers import DDPMPipeline, DDPMScheduler

        torch.set_num_threads(threads)
        self._torch, self._batch_size, self._num_steps = torch, batch_size, num_steps
        self._pipeline = DDPMPipeline.from_pretrained(path, use_safetensors=True)
        # The folder may name another spacing, and another scheduler, which would sample by another method.
        self._pipeline.scheduler = DDPMScheduler.from_config(self._pipeline.scheduler.config, timestep_spacing=SPACING)
        self._pipeline.set_progress_bar_config(disable=True)
        unet = self._pipeline.unet.eval()
        if compiled:
            import torch._inductor.config as inductor

            inductor.freezing = True
            unet = unet.to(memory_format=torch.channels_last)
            unet.forward = torch.compile(unet.forward)
        self._bf16 = bf16
        self._pipeline.scheduler.set_timesteps(num_steps)
        self.timesteps = self._pipeline.scheduler.timesteps.tolist()

    def _autocast(self) -> Any:
        return self._torch.autocast("cpu", dtype=self._torch.bfloat16, enabled=self._bf16)

    def first_step(self) -> None:
        self._sample(1)

    def chain(self) -> None:
        self._sample(self._num_steps)

    def _sample(self, num_steps: int) -> np.ndarray:
        with self._torch.inference_mode(), self._autocast():
            images = self._pipeline(batch_size=self._batch_size, num_inference_steps=num_steps, output_type="np").images
        return np.asarray(images)

    def network(self) -> None:
        config = self._pipeline.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        x = self._torch.randn(self._batch_size, config.in_channels, height, width)
        with self._torch.inference_mode(), self._autocast():
            for _ in range(self._num_steps):
                self._pipeline.unet(x, self._torch.tensor(500))

    def images(self) -> np.ndarray:
        from diffusers.pipelines.ddpm import pipeline_ddpm
        from diffusers.schedulers import scheduling_ddpm

        # diffusers draws x_T and then the noise of every timestep but the last.
        draws = iter([draw_number(None), *(draw_number(int(timestep)) for timestep in self.timesteps)])

        def our_noise(shape: tuple[int, ...], **_: Any) -> Any:
            return self._torch.from_numpy(shared_noise(tuple(shape), next(draws)))

        originals = pipeline_ddpm.randn_tensor, scheduling_ddpm.randn_tensor
        pipeline_ddpm.randn_tensor = lambda shape, **_: our_noise(shape)
        scheduling_ddpm.randn_tensor = lambda shape, **_: our_noise(shape)
        try:
            return self._sample(self._num_steps).transpose(0, 3, 1, 2) * 2.0 - 1.0
        finally:
            pipeline_ddpm.randn_tensor, scheduling_ddpm.randn_tensor = originals


def shared_noise(shape: tuple[int, ...], draw: int) -> np.ndarray:
    """The noise of samples 0..N−1 under `SEED`, float32 [N, C, H, W]."""
    return normal_batch(shape[1:], [SEED] * shape[0], list(range(shape[0])), draw)


# Name → (file or folder below the working folder, how to run it). A missing file means the peer is not run.
PEERS: dict[str, tuple[str, Callable[..., Peer]]] = {
    "diffusers": ("checkpoint", Diffusers),
    "diffusers + torch.compile": ("checkpoint", partial(Diffusers, compiled=True)),
    "diffusers + torch.compile, bf16": ("checkpoint", partial(Diffusers, compiled=True, bf16=True)),
    "plain ONNX Runtime loop": ("unet.onnx", PlainOnnxLoop),
    "ours, PyTorch": ("checkpoint", OurChain),
    "ours, ONNX Runtime": ("unet.onnx", partial(OurChain, backend="onnxruntime")),
    "ours, OpenVINO": ("unet.xml", OurChain),
    "ours, OpenVINO bf16": ("unet_bf16.xml", OurChain),
}


def make_peer(name: str, folder: Path, batch_size: int, num_steps: int, threads: int) -> Peer:
    """The peer of a name.

    Raises:
        DeviceUnavailableError: its library is not installed.
    """
    file, make = PEERS[name]
    try:
        return make(folder / file, batch_size, num_steps, threads)
    except ModuleNotFoundError as error:
        raise DeviceUnavailableError(f"{name}: the module {error.name!r} is not installed") from error


def serve(name: str, folder: Path, batch_size: int, num_steps: int, threads: int) -> None:
    """Start a peer, run its first step, then do as told until standard input ends."""
    peer = make_peer(name, folder, batch_size, num_steps, threads)
    peer.first_step()
    _answer({"first_step_seconds": seconds_since_process_start(), "timesteps": peer.timesteps})
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        begin = time.perf_counter()
        if command == "chain":
            peer.chain()
        elif command == "network":
            peer.network()
        elif command == "images":
            np.save(argument, peer.images())
        seconds = time.perf_counter() - begin
        _answer({"seconds": seconds, "peak_bytes": peak_resident_bytes()})


def peak_resident_bytes() -> int:
    """The most memory this process has had. Not getrusage's, which counts what the parent had at the fork."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def _answer(content: dict[str, Any]) -> None:
    print(json.dumps(content), file=_out, flush=True)


if __name__ == "__main__":
    # Libraries print to standard output; the answers must not be mixed with that.
    _out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6]))
