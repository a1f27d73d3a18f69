"""The seeds of tests/reader_fuzz/seeds, as our own programs write such files: python -m tests.reader_fuzz.make_seeds"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy
from PIL import Image

from diffusion.samplers import make_table
from runtime.engines.trajectories import make_golden
from runtime.formats.run_manifest import NonFiniteSample, RunManifest
from runtime.formats.shard_record import ShardRecord
from runtime.formats.table_file import TableFile
from runtime.formats.train_record import TrainRecord
from runtime.runs.folder_store import FileThatGrows
from runtime.runs.journal import Journal, KeptBatch
from tests.gaussian import GaussianNetwork
from tests.reader_fuzz.readers import IDENTITY, PROCESS

SEEDS = Path(__file__).with_name("seeds")
_RECORDED = Path(__file__).parents[1] / "runtime" / "formats" / "recorded"
_NETWORK = {
    "_class_name": "UNet2DModel",
    "sample_size": 2,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8],
}
_SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 10, "clip_sample": True}


def seeds(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Of each reader one or more files; `folder` is an empty one to work in."""
    network = GaussianNetwork(PROCESS, 0.2, 0.5)
    for name in ("xml", "plan"):
        yield f"sidecar_of_{name}", (_RECORDED / f"unet.{name}.json").read_bytes()
    yield "golden", make_golden(PROCESS, network, "fp32").to_bytes()
    RunManifest({"num": 3, "start": 0}, ("samples.npz",), 2, (NonFiniteSample(1, 2, 3),)).write(folder)
    yield "run_manifest", (folder / "run.json").read_bytes()
    record = ShardRecord(IDENTITY, 0, 2, "shard-000000000-000000001.npz", 10, IDENTITY, (NonFiniteSample(1, 2, 3),))
    yield "shard_record", record.to_text().encode()
    TrainRecord(PROCESS, {"config": {"steps": 3}}, config_sha256=IDENTITY).write(folder)
    yield "train_record", (folder / "train.json").read_bytes()
    TableFile(make_table(PROCESS, "unipc", 3), None, True).write(folder / "table.json")
    yield "table", (folder / "table.json").read_bytes()
    images = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    Journal(FileThatGrows(folder / "part"), IDENTITY, 0, (2, 2, 1)).add([KeptBatch(0, 2, images, ())])
    yield "journal", (folder / "part").read_bytes()
    yield "process", json.dumps(PROCESS.to_json()).encode()
    yield "onnx", network.save_onnx(folder / "unet.onnx").read_bytes()
    yield "safetensors", safetensors.numpy.save({"weight": np.zeros((2, 2), np.float32)})
    yield "safetensors_index", json.dumps({"weight_map": {"weight": "a.safetensors"}}).encode()
    yield "checkpoint", json.dumps(_NETWORK).encode() + b"\0" + json.dumps(_SCHEDULER).encode()
    yield "states", _npz(arr_0=np.zeros((1, 1, 2, 2), np.float32))
    yield "states", _npz(arr_0=images)
    yield "images", _npz(arr_0=images, labels=np.array([0, 1]))
    for kind, mode in (
        ("PNG", "L"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("TIFF", "L"),
        ("WEBP", "RGB"),
        ("BMP", "RGB"),
        ("GIF", "L"),
    ):
        stream = io.BytesIO()
        Image.fromarray(images[0, :, :, 0]).convert(mode).save(stream, kind)
        yield "picture", stream.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for name, content in seeds(Path(place)):
            target = SEEDS / name
            target.mkdir(parents=True, exist_ok=True)
            number = len(list(target.glob("seed-*")))
            (target / f"seed-{number}").write_bytes(content)
