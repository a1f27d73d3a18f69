"""Every reader of files that somebody else may have written, as a function of bytes, which it may refuse in one line.

A digest would end most of what a fuzzer tries at the first comparison, so objects that have one are sealed anew.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from commands.errors import DeviceUnavailableError, VerificationError
from diffusion.errors import InputError
from diffusion.json_text import parse_json
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines.checkpoint_folder import read_checkpoint_folder
from runtime.engines.checkpoint_weights import find_weights
from runtime.engines.onnx_file import read_onnx
from runtime.formats.digest import DIGEST, seal
from runtime.formats.golden import Golden
from runtime.formats.openvino_description import OpenVinoDescription
from runtime.formats.plan_description import PlanDescription
from runtime.formats.run_manifest import RunManifest
from runtime.formats.shard_record import ShardRecord
from runtime.formats.sidecar import read_sidecar
from runtime.formats.table_file import TableFile
from runtime.formats.train_record import TrainRecord
from runtime.initial_states import load_initial_states
from runtime.pictures import read_picture
from runtime.runs.folder_store import FileThatGrows
from runtime.runs.journal import Journal

REFUSALS = (InputError, VerificationError, DeviceUnavailableError, MemoryError)
"""All that a reader may raise; `commands.program.run_program` makes one line of each."""

PROCESS = Process(SampleShape(1, 2, 2), NoiseSchedule.make("linear", 10))
IDENTITY = "0" * 64


def _sealed(content: bytes) -> bytes:
    with contextlib.suppress(ValueError):  # InputError is one
        fields = parse_json(content)
        if isinstance(fields, dict) and DIGEST in fields:
            return json.dumps(seal(fields)).encode()
    return content


def _written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def _sidecar(name: str, kind: type) -> Callable[[bytes, Path], object]:
    def read(content: bytes, folder: Path) -> object:
        _written(folder, f"{name}.json", _sealed(content))
        return read_sidecar(folder / name, kind)

    return read


def _run(content: bytes, folder: Path) -> object:
    return RunManifest.read(_written(folder, "run.json", _sealed(content)).parent)


def _train(content: bytes, folder: Path) -> object:
    return TrainRecord.read(_written(folder, "train.json", _sealed(content)).parent)


def _npz(content: bytes, folder: Path) -> object:
    return load_initial_states(_written(folder, "states.npz", content), PROCESS, None, None, 0, 0)


def _images(content: bytes, folder: Path) -> object:
    from train.npz_images import load_npz

    return load_npz(_written(folder, "images.npz", content), classes=True)


def _picture(content: bytes, folder: Path) -> object:
    return read_picture(BytesIO(content), "picture", "RGB")


def _journal(content: bytes, folder: Path) -> object:
    return Journal(FileThatGrows(_written(folder, ".shard.part", content)), IDENTITY, 0, (2, 2, 1)).read()


def _process(content: bytes, folder: Path) -> object:
    return Process.from_json_text(content.decode("utf-8", "surrogateescape"), "metadata")


def _safetensors(content: bytes, folder: Path) -> object:
    from runtime.engines.torch_weights import load_weights

    _written(folder, "diffusion_pytorch_model.safetensors", content)
    return load_weights(folder, allow_pickle=False)


def _index(content: bytes, folder: Path) -> object:
    _written(folder, "diffusion_pytorch_model.safetensors.index.json", content)
    return find_weights(folder, allow_pickle=False)


def _checkpoint(content: bytes, folder: Path) -> object:
    """Two JSON files, divided by a zero byte: the network's configuration and the scheduler's."""
    network, _, scheduler = content.partition(b"\0")
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    _written(folder, "model_index.json", json.dumps(index).encode())
    _written(folder, "unet/config.json", network)
    _written(folder, "scheduler/scheduler_config.json", scheduler)
    return read_checkpoint_folder(folder)


READERS: dict[str, Callable[[bytes, Path], object]] = {
    "sidecar_of_xml": _sidecar("unet.xml", OpenVinoDescription),
    "sidecar_of_plan": _sidecar("unet.plan", PlanDescription),
    "golden": lambda content, folder: Golden.from_bytes(content, folder / "golden.npz", "make it"),
    "run_manifest": _run,
    "shard_record": lambda content, folder: ShardRecord.parse(_sealed(content), "shard.json"),
    "train_record": _train,
    "table": lambda content, folder: TableFile.read(_written(folder, "table.json", _sealed(content))),
    "journal": _journal,
    "process": _process,
    "onnx": lambda content, folder: read_onnx(_written(folder, "unet.onnx", content)),
    "safetensors": _safetensors,
    "safetensors_index": _index,
    "checkpoint": _checkpoint,
    "states": _npz,
    "images": _images,
    "picture": _picture,
}


def try_reader(name: str, content: bytes, folder: Path) -> str | None:
    """What a reader says of bytes that it refuses; None of others.

    Args:
        name: one of `READERS`.
        content: of the file.
        folder: to work in; a reader's files are written over each other.

    Raises:
        AssertionError: the refusal is not one line.
        Exception: whatever else comes out of the reader: a bug.
    """
    try:
        READERS[name](content, folder)
    except REFUSALS as error:
        said = str(error)
    else:
        return None
    assert "\n" not in said, f"{name}: more than one line: {said}"
    return said
