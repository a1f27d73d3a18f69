"""`export.inspect`: every kind of file, as a table and as JSON, and what is none of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from diffusion.conditions import Condition
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from diffusion.samplers.user_table import table_to_json
from export import ExportRequest, export_onnx, export_openvino
from export.inspect import main
from runtime import sample
from runtime.engines.checkpoint_folder import read_checkpoint_folder
from runtime.engines.torch_checkpoint import TorchEngine
from runtime.formats.digest import sealed_text
from runtime.formats.train_record import TrainRecord
from tests.checkpoints import save_tiny_checkpoint
from tests.export.checkpoints.lucidrains_networks import make_diffusion
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.plan_files import NETWORK, engine_fields, save_plan

FLAGS = ["--prediction-type", "epsilon", "--variance-type", "fixed_small", "--clip-sample", "none"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, an ONNX file and an engine of it."""
    folder = tmp_path_factory.mktemp("made")
    save_tiny_checkpoint(folder / "checkpoint")
    export_onnx(ExportRequest(folder / "unet.onnx", folder / "checkpoint"))
    export_openvino(ExportRequest(folder / "unet.xml", onnx=folder / "unet.onnx"))
    return folder


class Inspected:
    """What the command printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
        capsys.readouterr()
        assert main([*words, "--json"]) == 0
        out = capsys.readouterr().out
        self.fields: dict[str, Any] = json.loads(out)
        assert main(words) == 0
        self.text = capsys.readouterr().out

    def row(self, name: str) -> str:
        """The value of a row of the table."""
        rows = [line.partition("  ") for line in self.text.splitlines()]
        return next(value.strip() for head, _, value in rows if head.strip() == name)


@pytest.fixture
def inspected(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *words: Inspected(capsys, [*map(str, words)])


def test_a_checkpoint_folder(made: Path, inspected: Any) -> None:
    found = inspected(made / "checkpoint")
    engine = TorchEngine(made / "checkpoint")
    assert found.fields["kind"] == "checkpoint, a diffusers folder"
    assert found.fields["process"] == engine.process.to_json()
    assert found.fields["sha256"]["network"] == engine.sha256
    weights = made / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors"
    assert found.fields["sha256"]["weights"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found.fields["parameters"] == 44_969
    assert found.fields["runs_here"][0] == {"backend": "PyTorch on the CPU", "missing": None}
    assert "predicts epsilon, noise linear, T = 1000" in found.row("process")
    assert found.row("sample") == "1 × 8 × 8, 256 gray levels"
    assert found.row("parameters") == "44,969"
    assert found.row("precision") == "weights in float32, run in float32"


def test_a_network_alone_takes_flags(made: Path, tmp_path: Path, inspected: Any) -> None:
    alone = Path(shutil.copytree(made / "checkpoint" / "unet", tmp_path / "alone"))
    flags = ["--beta-schedule", "laplace", *FLAGS]
    found = inspected(alone, *flags)
    assert found.fields["process"]["schedule"] == {"kind": "laplace", "num_train_timesteps": 1000}
    assert found.fields["process_origins"]["schedule"] == "--beta-schedule"


def test_a_network_with_classes_and_guidance(tmp_path: Path, inspected: Any) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint", num_train_timesteps=60, unet={"num_class_embeds": 5})
    plain = read_checkpoint_folder(folder).process
    TrainRecord(replace(plain, conditions=(Condition("y", "int64", classes=4, null=4),))).write(folder)
    found = inspected(folder).fields
    assert [each["name"] for each in found["conditions"]] == ["y", "guidance"]
    assert found["tensors"]["y"] == "int64 [N]"
    export_onnx(ExportRequest(tmp_path / "unet.onnx", folder))
    graph = inspected(tmp_path / "unet.onnx")
    assert graph.fields["conditions"] == found["conditions"]
    assert graph.fields["tensors"]["guidance"] == "float32 [N]"
    # The network is called for the class and for the null class.
    assert graph.fields["flops_per_image"] == 2 * found["flops_per_image"]
    assert "name y" in graph.row("condition")


def test_an_onnx_file_of_ours(made: Path, inspected: Any) -> None:
    found = inspected(made / "unet.onnx")
    fields = found.fields
    assert (fields["kind"], fields["precision"]) == ("ONNX file", "fp32")
    assert fields["sha256"] == {"file": hashlib.sha256((made / "unet.onnx").read_bytes()).hexdigest()}
    assert fields["tensors"] == {
        "x": "float32 [N, 1, 8, 8]", "t": "float32 [N]", "prediction": "float32 [N, 1, 8, 8]",
    }  # fmt: skip
    assert fields["origin"]["unchanged_since_export"] is True
    assert fields["operators"]["Conv"] == 25
    assert [each["backend"] for each in fields["runs_here"]][:2] == ["ONNX Runtime on the CPU", "OpenVINO on the CPU"]
    assert all(each["missing"] is None for each in fields["runs_here"][:2])
    assert "all from its metadata" in found.row("process")


def test_an_onnx_file_that_was_changed(made: Path, tmp_path: Path, inspected: Any) -> None:
    model = onnx.load(str(made / "unet.onnx"))
    model.doc_string = "changed"
    onnx.save(model, str(tmp_path / "unet.onnx"))
    assert inspected(tmp_path / "unet.onnx").fields["origin"]["unchanged_since_export"] is False


def test_an_onnx_file_that_describes_no_process(tmp_path: Path, inspected: Any) -> None:
    process = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 50))
    path = GaussianNetwork(process, 0.2, 0.5).save_onnx(tmp_path / "unet.onnx")
    model = onnx.load(str(path))
    del model.metadata_props[:]
    onnx.save(model, str(path))
    found = inspected(path)
    assert found.fields["process"] is None
    assert "`beta_schedule`" in found.fields["process_missing"]
    flags = ["--beta-schedule", "linear", *FLAGS]
    assert inspected(path, *flags).fields["process"]["schedule"]["kind"] == "linear"


def test_an_engine_and_its_sidecar(made: Path, tmp_path: Path, inspected: Any) -> None:
    sidecar = json.loads((made / "unet.xml.json").read_text())
    for name in ("unet.xml", "unet.xml.json"):
        found = inspected(made / name)
        assert found.fields["process"] == sidecar["process"]
        assert found.fields["verification"] == sidecar["verification"]
        assert found.fields["sha256"]["file"] == sidecar["sha256"]
        assert found.fields["engine_file"] is True
        assert found.fields["flops_per_image"] > 0
        assert f"worst {sidecar['verification']['worst_relative_error']:.2e}" in found.row("verified")
    shutil.copy(made / "unet.xml.json", tmp_path)
    alone = inspected(tmp_path / "unet.xml.json").fields
    assert (alone["kind"], alone["engine_file"], alone["parameters"]) == ("sidecar (OpenVINO engine)", False, None)


def test_a_plan_is_not_deserialized(tmp_path: Path, inspected: Any) -> None:
    path = save_plan(tmp_path / "unet.plan", NETWORK, engine_fields(NETWORK, "tensorrt-rtx"))
    found = inspected(path)
    assert found.fields["kind"] == "TensorRT plan"
    assert found.fields["origin"]["compute_capabilities"]
    assert found.fields["runs_here"][0]["missing"]  # no GPU in tests


def test_a_table(tmp_path: Path, inspected: Any) -> None:
    table = make_table(Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear")), "ddim", 5)
    (tmp_path / "table.json").write_text(json.dumps(table_to_json(table)))
    found = inspected(tmp_path / "table.json")
    assert (found.fields["kind"], found.fields["network_calls"]) == ("table of a sampler", 5)
    assert found.fields["timesteps"] == table.timesteps.tolist()
    assert found.row("sampler") == table.sampler


def test_a_run(made: Path, tmp_path: Path, inspected: Any) -> None:
    words = ["--engine", str(made / "unet.onnx"), "--num", "3", "--steps", "2", "--out", str(tmp_path / "out")]
    assert sample.main(words) == 0
    for path in (tmp_path / "out", tmp_path / "out" / "run.json"):
        found = inspected(path)
        assert (found.fields["kind"], found.fields["done"]) == ("run of samples", 3)
        assert found.fields["identity"]["steps"] == 2
        assert found.fields["sha256"]["engine"] == hashlib.sha256((made / "unet.onnx").read_bytes()).hexdigest()


def test_a_run_in_shards_is_what_lies_there(made: Path, tmp_path: Path, inspected: Any) -> None:
    out = tmp_path / "out"
    words = ["--engine", str(made / "unet.onnx"), "--num", "7", "--steps", "2", "--out", str(out), "--shard-size", "3"]
    assert sample.main(words) == 0
    found = inspected(out).fields
    assert (found["done"], found["shards"], found["shards_done"]) == (7, 3, 3)
    (out / "shard-000000003-000000005.json").unlink()
    found = inspected(out / "run.json").fields
    assert (found["done"], found["shards"], found["shards_done"]) == (4, 3, 2)


def test_a_checkpoint_of_another_project(tmp_path: Path, inspected: Any) -> None:
    diffusion = make_diffusion(unet_channels=1, size=8)
    torch.save(diffusion.state_dict(), tmp_path / "model-1.pt")
    found = inspected(tmp_path / "model-1.pt", "--allow-pickle", "--image_size", "8")
    assert "lucidrains" in found.fields["kind"]
    assert found.fields["parameters"] == sum(each.numel() for each in diffusion.model.parameters())
    assert found.fields["process"]["prediction_type"] == "v_prediction"


def spoil_engine(folder: Path) -> list[str]:
    (folder / "unet.xml").write_text((folder / "unet.xml").read_text() + " ")
    return ["unet.xml"]


def spoil_weights(folder: Path) -> list[str]:
    (folder / "unet.bin").write_bytes(b"\0" * 8)
    return ["unet.xml"]


def without_sidecar(folder: Path) -> list[str]:
    (folder / "unet.xml.json").unlink()
    return ["unet.xml"]


def renamed_sidecar(folder: Path) -> list[str]:
    (folder / "unet.xml.json").rename(folder / "sidecar.json")
    return ["sidecar.json"]


def written(name: str, content: str | bytes, *words: str) -> Any:
    def write(folder: Path) -> list[str]:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return [name, *words]

    return write


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: ["nothing.onnx"], "nothing.onnx: no such file or folder, expected a checkpoint"),
        (lambda folder: ["."], "a folder without model_index.json, config.json or run.json"),
        (written("a.txt", "hello"), "found the suffix '.txt', expected a checkpoint"),
        (written("a.json", "{"), "a.json: not JSON"),
        (written("a.json", '{"b": 1}'), "a.json: holds b, expected a checkpoint"),
        (written("model_index.json", "{}"), "is a file of a checkpoint, expected its folder"),
        (written("table.json", '{"rows": [], "sampler": "x"}'), "table.json: "),
        (written("run.json", sealed_text({"format": 2, "identity": {}, "done": -1})), "run.json: done is -1"),
        (written("run.json", '{"format": 2, "identity": {}, "done": 0}'), "run.json: digest is missing"),
        (written("a.onnx", b"junk"), "a.onnx: cannot be read as an ONNX model"),
        (written("a.onnx", b""), "a.onnx: holds no graph"),
        (written("a.pt", b"junk"), "a.pt: is a pickle, expected safetensors; give --allow-pickle"),
        (written("a.pt", b"junk", "--allow-pickle"), "a.pt: found 4 bytes"),
        (written("a.plan", b"junk"), "a.plan.json: no such file"),
        (spoil_engine, "unet.xml: SHA-256 is"),
        (spoil_weights, "unet.bin: SHA-256 is"),
        (without_sidecar, "unet.xml.json: no such file"),
        (renamed_sidecar, "sidecar.json: is a sidecar by another name"),
        (lambda folder: ["unet.xml", "--clip-sample", "1"], "process flags are for an ONNX file or a network alone"),
        (lambda folder: ["unet.xml", "--image_size", "8"], "--image_size is for the file of another project"),
        (lambda folder: ["unet.onnx", "--beta-schedule", "laplace"], "was trained with linear"),
    ],
)
def test_what_is_none_of_them(
    made: Path,
    tmp_path: Path,
    spoil: Any,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("unet.onnx", "unet.xml", "unet.bin", "unet.xml.json"):
        shutil.copy(made / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(spoil(tmp_path)) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
