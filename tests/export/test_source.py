"""What an exporter takes for the float32 network, what it refuses, and what it tells of the process."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export import ExportRequest, source
from export.source import FACTS, process_line
from runtime.engines.checkpoint_folder import read_checkpoint_folder
from runtime.engines.onnx_precision import PRECISION_KEY
from runtime.formats.train_record import TRAIN_JSON
from runtime.process_flags import ProcessFlags
from tests.checkpoints import save_tiny_checkpoint
from tests.gaussian import GaussianNetwork

PROCESS = Process(SampleShape(1, 4, 4), NoiseSchedule.make("squaredcos_cap_v2", 50), "sample", "learned_range", None)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_file_of_low_precision_is_no_reference(tmp_path: Path, precision: str) -> None:
    process = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 50))
    path = GaussianNetwork(process, 0.2, 0.5).save_onnx(tmp_path / "unet.onnx")
    assert source.read_source(ExportRequest(tmp_path / "unet.xml", onnx=path)).process == process
    model = onnx.load(str(path))
    model.metadata_props.add(key=PRECISION_KEY, value=precision)
    onnx.save(model, str(path))
    with pytest.raises(InputError, match=rf"unet.onnx: computes in {precision}, .* export it without --{precision}"):
        source.read_source(ExportRequest(tmp_path / "unet.xml", onnx=path))


def test_every_fact_has_its_origin() -> None:
    origins = {name: f"<{name}>" for name in FACTS}
    assert process_line(PROCESS, origins) == (
        "predicts sample (<prediction_type>), noise squaredcos_cap_v2, T = 50 (<schedule>), "
        "variance learned_range (<variance_type>), x_start not clipped (<clip_sample>)"
    )
    assert process_line(PROCESS, dict.fromkeys(FACTS, "here")) == (
        "predicts sample, noise squaredcos_cap_v2, T = 50, variance learned_range, x_start not clipped (all from here)"
    )


def test_a_folder_names_the_file_that_decides(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    found = read_checkpoint_folder(folder)
    assert set(found.origins) == set(FACTS)
    assert set(found.origins.values()) == {"scheduler_config.json"}
    (folder / TRAIN_JSON).write_text(json.dumps({"format": 1, "process": found.process.to_json()}))
    assert set(read_checkpoint_folder(folder).origins.values()) == {"train.json"}


def test_a_folder_that_says_little_names_the_defaults(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "PNDMScheduler", "beta_schedule": "linear"}))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "PNDMScheduler"]}))
    assert read_checkpoint_folder(folder).origins == {
        "prediction_type": "default of PNDMScheduler",
        "schedule": "scheduler_config.json",
        "variance_type": "default of DDPMScheduler",
        "clip_sample": "PNDMScheduler never clips",
    }


def test_an_onnx_file_and_the_flags_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 50))
    path = GaussianNetwork(process, 0.2, 0.5).save_onnx(tmp_path / "unet.onnx")
    flags = ProcessFlags(variance_type="fixed_large", clip_sample="none")
    source.read_source(ExportRequest(tmp_path / "unet.xml", onnx=path, process=flags))
    note, said = capsys.readouterr().err.splitlines(keepends=True)
    assert note.startswith(f"note: {path} has no digest")
    assert said == (
        f"{path}: predicts epsilon (its metadata), noise linear, T = 50, beta 0.0001 to 0.02 (its metadata), "
        "variance fixed_large (--variance-type), x_start not clipped (--clip-sample)\n"
    )
