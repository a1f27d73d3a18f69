"""What an exporter takes for the float32 network, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export import ExportRequest, source
from runtime.engines.onnx_precision import PRECISION_KEY
from tests.gaussian import GaussianNetwork


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
