"""From a checkpoint folder to a published file, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import safetensors.torch
import torch
from diffusers import UNet2DModel

from benchmarks.networks import CIFAR10_UNET
from commands.errors import EXIT_INPUT, EXIT_INTERRUPTED, EXIT_VERIFICATION
from diffusion.process import METADATA_KEY, Process
from export import ExportRequest, source, to_onnx
from runtime.engines import torch_checkpoint
from runtime.engines.torch_checkpoint import load_checkpoint
from runtime.formats.onnx_seal import SEAL_KEY
from tests.checkpoints import LEAST, save_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
# As google/ddpm-celebahq-256 is built, in small: a single head of attention at the last but one level.
CELEBAHQ_LIKE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
# As OpenAI's networks are built, in small; with a table of time embeddings.
RESNET_SAMPLING: dict[str, Any] = {
    "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "time_embedding_type": "learned",
    "num_train_timesteps": 30,
    "center_input_sample": True,
    "add_attention": False,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(
        tmp_path_factory.mktemp("checkpoint"),
        channels=3,
        size=(16, 8),
        variance_type="learned_range",
        beta_schedule="squaredcos_cap_v2",
        num_train_timesteps=200,
    )


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The file and the report on it."""
    out = tmp_path_factory.mktemp("exported") / "models" / "unet.onnx"
    return out, dict(to_onnx.export_onnx(ExportRequest(out, checkpoint)).report)


def run(*arguments: object) -> int:
    return to_onnx.main([str(argument) for argument in arguments])


def predict(path: Path, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    prediction: np.ndarray = session.run(["prediction"], {"x": x, "t": t})[0]
    return prediction


def test_report_says_what_was_made(checkpoint: Path, exported: tuple[Path, dict[str, Any]]) -> None:
    out, report = exported
    assert report["onnx"] == str(out)
    assert report["size_bytes"] == out.stat().st_size
    assert report["opset"] == 18
    assert report["num_nodes"] == sum(report["nodes"].values())
    assert report["verification"]["passed"]
    assert 0 < report["verification"]["worst_relative_error"] <= 1e-5
    assert Process.from_json(report["process"]) == load_checkpoint(checkpoint).process
    assert [path.name for path in out.parent.iterdir()] == ["unet.onnx"]


def test_file_keeps_the_contract(checkpoint: Path, exported: tuple[Path, dict[str, Any]]) -> None:
    model = onnx.load(exported[0], load_external_data=False)
    shapes = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {
        "x": (onnx.TensorProto.FLOAT, ["N", 3, 16, 8]),
        "t": (onnx.TensorProto.FLOAT, ["N"]),
        "prediction": (onnx.TensorProto.FLOAT, ["N", 6, 16, 8]),
    }
    process, seal = model.metadata_props
    assert (process.key, seal.key) == (METADATA_KEY, SEAL_KEY)
    assert Process.from_json_text(process.value) == load_checkpoint(checkpoint).process
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize("num", [1, 3, 70])  # from 64 samples on diffusers takes other paths
def test_any_batch_runs(checkpoint: Path, exported: tuple[Path, dict[str, Any]], num: int) -> None:
    rng = np.random.default_rng(num)
    x = rng.standard_normal((num, 3, 16, 8), dtype=np.float32)
    t = rng.integers(0, 200, num).astype(np.float32)
    expected = load_checkpoint(checkpoint).predict(x, t)
    assert np.linalg.norm(predict(exported[0], x, t) - expected) <= 3e-6 * np.linalg.norm(expected)


def test_graph_holds_nothing_superfluous(exported: tuple[Path, dict[str, Any]]) -> None:
    model = onnx.load(exported[0])
    assert set(exported[1]["nodes"]) == {
        *("Add", "Concat", "Conv", "Cos", "Gemm", "InstanceNormalization", "MatMul", "Mul", "Reshape", "Resize"),
        *("Sigmoid", "Sin", "Softmax", "Transpose", "Unsqueeze"),
    }
    num_attentions = exported[1]["nodes"]["Softmax"]
    assert exported[1]["nodes"]["Transpose"] == 6 * num_attentions  # in, q, k, v, heads together, out
    assert exported[1]["nodes"]["Concat"] == 1 + 4  # of sin and cos, and of the skip connections
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    targets = [constants[node.input[1]] for node in model.graph.node if node.op_type == "Reshape"]
    assert all(target[0] == 0 for target in targets)  # the first axis is the input's, whatever the batch
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "unet.down_blocks.1.attentions.0.to_q/MatMul" in names


def test_file_says_nothing_of_this_machine(exported: tuple[Path, dict[str, Any]]) -> None:
    content = exported[0].read_bytes()
    for word in (
        os.fsencode(ROOT),
        b"site-packages",
        b".py",
        b"pkg.torch",
        b"/home",
        b"/root",
        os.fsencode(Path.home()),
    ):
        assert word not in content
    model = onnx.load(exported[0])
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_same_checkpoint_gives_the_same_bytes(
    checkpoint: Path, exported: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """From another folder and in a process of its own, as a user runs it."""
    elsewhere, out = Path(shutil.copytree(checkpoint, tmp_path / "elsewhere")), tmp_path / "unet.onnx"
    command = [sys.executable, "-m", "export.to_onnx", "--json", "--checkpoint", elsewhere, "--out", out]
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == exported[0].read_bytes()
    report = json.loads(done.stdout)
    assert report.pop("verification")["passed"]
    places = {"onnx": str(out), "checkpoint": str(elsewhere)}
    other = {name: value for name, value in exported[1].items() if name not in ("summary", "verification")}
    assert report == other | places
    assert done.stderr.splitlines() == [
        f"reading {elsewhere}",
        f"{elsewhere}: predicts epsilon, noise squaredcos_cap_v2, T = 200, variance learned_range, "
        "x_start clipped to ±1 (all from scheduler_config.json)",
        f"tracing the network ({load_checkpoint(checkpoint).num_parameters:,} parameters) at opset 18",
        "comparing ONNX Runtime with PyTorch",
    ]


@pytest.mark.parametrize(
    ("opset", "arguments"),
    [
        (21, {"channels": 3, "size": 16, "unet": CELEBAHQ_LIKE}),
        (19, {"unet": RESNET_SAMPLING, "num_train_timesteps": 30, "prediction_type": "v_prediction"}),
    ],
    ids=["celebahq", "resnet sampling"],
)
def test_other_networks_and_opsets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], opset: int, arguments: dict[str, Any]
) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint", **arguments)
    out = tmp_path / "unet.onnx"
    assert run("--checkpoint", folder, "--out", out, "--opset", opset) == 0
    assert f"{out}: 0." in capsys.readouterr().out
    assert [entry.version for entry in onnx.load(out).opset_import] == [opset]
    assert not {"Shape", "Expand", "Slice"} & {node.op_type for node in onnx.load(out).graph.node}


def test_freshly_initialized_network_passes(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint", unet=LEAST)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(weights)
    for name in ("conv_out.weight", "conv_out.bias"):
        state[name].zero_()
    safetensors.torch.save_file(state, weights)
    assert run("--checkpoint", folder, "--out", tmp_path / "unet.onnx") == 0
    x = np.ones((2, 1, 8, 8), dtype=np.float32)
    assert not predict(tmp_path / "unet.onnx", x, np.zeros(2, dtype=np.float32)).any()


def test_network_that_fails_its_check_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint", unet=LEAST)
    faithful = torch_checkpoint.Checkpoint.predict

    def off_at_the_end(self: torch_checkpoint.Checkpoint, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        scale = np.where(t == 999, 1.0001, 1.0).astype(np.float32)
        return faithful(self, x, t) * scale[:, None, None, None]

    monkeypatch.setattr(torch_checkpoint.Checkpoint, "predict", off_at_the_end)
    out = tmp_path / "out" / "unet.onnx"
    out.parent.mkdir()
    out.write_bytes(b"an older file")
    assert run("--checkpoint", folder, "--out", out) == EXIT_VERIFICATION
    printed = capsys.readouterr()
    assert printed.out == ""
    failed = [line for line in printed.err.splitlines() if line.endswith("too large")]
    assert {line.split()[0] for line in failed} == {"999"}
    assert [path.read_bytes() for path in out.parent.iterdir()] == [b"an older file"]


def test_interrupted_export_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        assert list(tmp_path.iterdir())  # the temporary file is there by now
        raise KeyboardInterrupt

    monkeypatch.setattr(source, "_trace", interrupted)
    assert run("--checkpoint", checkpoint, "--out", tmp_path / "unet.onnx") == EXIT_INTERRUPTED
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "{tmp}/none"], ["{tmp}/none: no such checkpoint folder", "python -m train.run"]),
        (["--checkpoint", "{tmp}"], ["{tmp}/model_index.json: no such file", "save_pretrained"]),
        (["--checkpoint", "{checkpoint}", "--out", "{tmp}/unet.pt"], ["unet.pt", "'.pt'", "'.onnx'"]),
        (["--checkpoint", "{checkpoint}", "--out", "{tmp}/folder.onnx"], ["folder.onnx: is a folder", "--out"]),
        (["--checkpoint", "{checkpoint}", "--out", "{tmp}/file/unet.onnx"], ["cannot be written", "--out"]),
        (["--checkpoint", "{checkpoint}", "--opset", "23"], ["--opset", "23", "18, 19, 20, 21"]),
        (["--checkpoint", "{checkpoint}", "--opset", "many"], ["--opset", "many"]),
    ],
    ids=["missing", "foreign", "suffix", "folder", "unwritable", "opset", "not a number"],
)
def test_bad_input_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    places = {"tmp": tmp_path, "checkpoint": checkpoint}
    filled = [argument.format(**places) for argument in arguments]
    try:
        code = run(*filled)
    except SystemExit as stop:  # argparse
        code = int(str(stop.code))
    printed = capsys.readouterr()
    assert code == EXIT_INPUT
    assert printed.out == ""
    *_, message = printed.err.splitlines()
    assert all(word.format(**places) in message for word in words), message
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "kept"


def test_truncated_checkpoint_leaves_the_old_file(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.stat().st_size
    os.truncate(weights, whole // 2)
    out = tmp_path / "unet.onnx"
    out.write_bytes(b"an older file")
    assert run("--checkpoint", folder, "--out", out) == EXIT_INPUT
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"truncated: found {whole // 2} bytes, expected {whole};" in message
    assert out.read_bytes() == b"an older file"


def test_network_of_the_published_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As google/ddpm-cifar10-32 is built, at a quarter of its width."""
    with torch.device("meta"):
        assert sum(each.numel() for each in UNet2DModel(**CIFAR10_UNET).parameters()) == 35_746_307
    folder = save_tiny_checkpoint(tmp_path / "checkpoint", unet=CIFAR10_UNET | {"block_out_channels": (32, 64, 64, 64)})
    assert run("--checkpoint", folder, "--out", tmp_path / "unet.onnx", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    weight_bytes = 4 * load_checkpoint(folder).num_parameters
    assert weight_bytes < report["size_bytes"] < 1.1 * weight_bytes  # the float32 numbers and little else
    nodes = report["nodes"]
    # ResNet blocks 8 + 2 + 12, attention 2 + 1 + 3, each of these with its norms, and the last norm.
    assert (nodes["Softmax"], nodes["InstanceNormalization"]) == (6, 2 * 22 + 6 + 1)
    assert nodes["Transpose"] == 3 * nodes["Softmax"]  # one head needs none to move it
    assert nodes["Reshape"] == 2 * nodes["InstanceNormalization"] + 6 * nodes["Softmax"]
