"""The files whose bytes are changed, each in a folder of its own, and the command that reads it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime  # noqa: F401  # before a process is forked, not in each of its forks
import openvino  # noqa: F401

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from export.inspect import main as inspect
from runtime.engines.checkpoint_folder import read_checkpoint_folder
from runtime.engines.trajectories import make_golden
from runtime.formats.digest import DIGEST
from runtime.formats.openvino_description import OpenVinoDescription
from runtime.formats.run_manifest import RunManifest
from runtime.formats.sidecar import golden_path, read_sidecar
from runtime.formats.table_file import TableFile
from runtime.formats.train_record import TrainRecord
from runtime.gather import main as gather
from runtime.sample import main as sample
from tests.checkpoints import save_tiny_checkpoint
from tests.fuzz.outcome import Main
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.openvino_files import save_engine
from tests.runtime.engines.plan_files import engine_fields, save_plan
from tests.runtime.gaussian_folder import seal_file

PROCESS = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 12, 0.01, 0.5), variance_type="fixed_large")
NETWORK = GaussianNetwork(PROCESS, 0.2, 0.5)
_DRAW = ("--num", "3", "--steps", "3", "--out", "out", "--format", "npy")
_RUN = (
    "--num",
    "6",
    "--steps",
    "3",
    "--out",
    "out",
    "--batch-size",
    "2",
    "--engine",
    "unet.onnx",
    "--backend",
    "onnxruntime",
)
_PNG, _SHARDS = ("--format", "png"), ("--shard-size", "2", "--format", "npz")


@dataclass(frozen=True)
class Target:
    """A file of some kind.

    Attributes:
        name: of the kind.
        folder: where it lies, beside what is needed to read it.
        file: relative to the folder.
        main, argv: the command that reads it.
        result: the files that hold what the command makes of it, a pattern; empty for its standard output.
        share: of all flips, relative to the other targets.
        has_digest: whether anything vouches for its bytes.
        with_cache: whether what the command found out before is known to it.
    """

    name: str
    folder: str
    file: str
    main: Main
    argv: tuple[str, ...]
    result: str = "out/*.npy"
    share: int = 1
    has_digest: bool = True
    with_cache: bool = True


_ON_ONNX_RUNTIME, _ON_OPENVINO = (*_DRAW, "--backend", "onnxruntime"), (*_DRAW, "--backend", "openvino")
_FROM_XML, _FROM_FOLDER, _INSPECT = (*_DRAW, "--engine", "unet.xml"), (*_DRAW, "--engine", "."), ("unet.plan", "--json")
_RESUME, _RESUME_SHARDS, _GATHER = (
    (*_RUN, *_PNG, "--resume"),
    (*_RUN, *_SHARDS, "--resume"),
    ("out", "--out", "all.npz"),
)
_FROM_TABLE = ("--num", "3", "--sampler", "table.json", "--out", "out", "--format", "npy", "--backend", "onnxruntime")
_RECORD, _SAMPLES = "out/shard-000000002-000000003.json", "out/shard-000000002-000000003.npz"
_WEIGHTS, _SCHEDULER = "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"

TARGETS = (
    Target("ONNX of ours, ONNX Runtime", "onnx", "unet.onnx", sample, _ON_ONNX_RUNTIME, share=2),
    Target("ONNX of ours, OpenVINO", "onnx", "unet.onnx", sample, _ON_OPENVINO, share=2),
    Target("ONNX of others, ONNX Runtime", "foreign", "unet.onnx", sample, _ON_ONNX_RUNTIME, has_digest=False),
    Target("ONNX of others, OpenVINO", "foreign", "unet.onnx", sample, _ON_OPENVINO, has_digest=False),
    Target("xml", "openvino", "unet.xml", sample, _FROM_XML, share=2),
    Target("bin", "openvino", "unet.bin", sample, _FROM_XML, share=2),
    Target("sidecar of an xml", "openvino", "unet.xml.json", sample, _FROM_XML, share=2),
    Target("golden", "unverified", "unet.xml.golden.npz", sample, _FROM_XML, with_cache=False),
    Target("plan", "plan", "unet.plan", inspect, _INSPECT, ""),
    Target("sidecar of a plan", "plan", "unet.plan.json", inspect, _INSPECT, "", share=2),
    Target("run.json", "run", "out/run.json", sample, _RESUME, "out/*.png", share=2),
    Target("run.json of a run in shards", "shards", "out/run.json", sample, _RESUME_SHARDS, "out/*.npz"),
    Target("record of a shard, resumed", "shards", _RECORD, sample, _RESUME_SHARDS, "out/*.npz"),
    Target("record of a shard, gathered", "shards", _RECORD, gather, _GATHER, "all.npz"),
    Target("samples of a shard, gathered", "shards", _SAMPLES, gather, _GATHER, "all.npz"),
    Target("table", "table", "table.json", sample, _FROM_TABLE, share=2),
    Target("table without a digest", "edited", "table.json", sample, _FROM_TABLE, has_digest=False),
    Target("safetensors", "checkpoint", _WEIGHTS, sample, _FROM_FOLDER, share=2),
    Target("train.json", "checkpoint", "train.json", sample, _FROM_FOLDER, share=2),
    Target("config.json of a network", "checkpoint", "unet/config.json", sample, _FROM_FOLDER),
    Target("scheduler_config.json", "checkpoint", _SCHEDULER, sample, _FROM_FOLDER),
    Target("model_index.json", "checkpoint", "model_index.json", sample, _FROM_FOLDER),
)


def make_folders(folder: Path) -> None:
    """Make the folder of every target, in an empty one."""
    for name, make in _FOLDERS.items():
        (folder / name).mkdir()
        make(folder / name)


def _onnx(folder: Path) -> None:
    seal_file(NETWORK.save_onnx(folder / "unet.onnx"))


def _foreign(folder: Path) -> None:
    NETWORK.save_onnx(folder / "unet.onnx")


def _openvino(folder: Path, verified: bool = True) -> None:
    path = save_engine(folder / "unet.xml", NETWORK)
    golden = make_golden(PROCESS, NETWORK, "fp32").to_bytes()
    golden_path(path).write_bytes(golden)
    sidecar = read_sidecar(path, OpenVinoDescription)
    engine = sidecar.engine if verified else replace(sidecar.engine, verified_on=None)
    replace(sidecar, engine=engine, golden_sha256=hashlib.sha256(golden).hexdigest()).write(path)


def _plan(folder: Path) -> None:
    save_plan(folder / "unet.plan", NETWORK, engine_fields(NETWORK, "tensorrt-rtx"))


def _run(folder: Path) -> None:
    """A third of a run."""
    _onnx(folder)
    _sampled(folder, *_RUN, *_PNG)
    for number in range(2, 6):
        (folder / "out" / f"{number:06d}.png").unlink()
    manifest = RunManifest.read(folder / "out")
    assert manifest is not None
    replace(manifest, done=2).write(folder / "out")


def _shards(folder: Path) -> None:
    _onnx(folder)
    _sampled(folder, *_RUN, *_SHARDS)


def _table(folder: Path) -> None:
    _onnx(folder)
    TableFile(make_table(PROCESS, "unipc", 4), None, True).write(folder / "table.json")


def _edited(folder: Path) -> None:
    """A table of which somebody removed the digest."""
    _table(folder)
    fields = json.loads((folder / "table.json").read_text())
    del fields[DIGEST]
    (folder / "table.json").write_text(json.dumps(fields))


def _checkpoint(folder: Path) -> None:
    save_tiny_checkpoint(folder, size=4, num_train_timesteps=12)
    process = read_checkpoint_folder(folder).process
    weights, config = (
        hashlib.sha256((folder / "unet" / name).read_bytes()).hexdigest()
        for name in ("diffusion_pytorch_model.safetensors", "config.json")
    )
    TrainRecord(replace(process, checkpoint_sha256=weights), config_sha256=config).write(folder)


def _sampled(folder: Path, *argv: str) -> None:
    with contextlib.chdir(folder):
        assert sample(argv) == 0


_FOLDERS: dict[str, Callable[[Path], None]] = {
    "onnx": _onnx,
    "foreign": _foreign,
    "openvino": _openvino,
    "unverified": lambda folder: _openvino(folder, verified=False),
    "plan": _plan,
    "run": _run,
    "shards": _shards,
    "table": _table,
    "edited": _edited,
    "checkpoint": _checkpoint,
}
