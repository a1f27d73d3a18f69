"""A plan is verified where it runs, once; on another GPU, driver or runtime version again."""

import json
import re
import sys
from dataclasses import replace

import pytest

from commands.errors import VerificationError
from diffusion.errors import InputError
from runtime.engines import tensorrt_refusals
from runtime.engines.opening import open_engine
from runtime.process_flags import ProcessFlags
from runtime.sample import main
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.plan_files import NETWORK, PROCESS, WITH_A10, engine_fields, save_plan


def test_the_first_use_verifies_and_the_second_does_not(accepted, memory, plan_cache, capsys):
    path = accepted().path
    sidecar = path.with_name("unet.plan.json").read_bytes()
    open_engine(path)
    said = capsys.readouterr().err
    assert "unet.plan: first use on NVIDIA A10, driver 580.95.05, tensorrt_rtx 1.7.1.116: verifying at 16" in said
    assert re.search(r"unet.plan: verified: predictions at most \S+ from NumPy, x_0 after 20 steps", said)
    (kept,) = (plan_cache / "verified").iterdir()
    found = json.loads(kept.read_text())
    assert found["verification"]["passed"] is True
    assert found["place"] == {"processor": "NVIDIA A10", "driver": "580.95.05", "runtime": "tensorrt_rtx 1.7.1.116"}
    assert path.with_name("unet.plan.json").read_bytes() == sidecar
    path.with_name("unet.plan.golden.npz").unlink()  # not needed any more
    engine = open_engine(path, flags=ProcessFlags(clip_sample="none"))
    assert capsys.readouterr().err == ""
    assert engine.process.clip_sample is None
    assert engine.name == "TensorRT-RTX 1.7.1.116 (fp32, NVIDIA A10)"


@pytest.mark.parametrize("fact", ["gpu", "driver", "runtime", "engine"])
def test_what_was_verified_elsewhere_is_verified_again(accepted, memory, monkeypatch, capsys, fact):
    accepted_plan = accepted()
    path = accepted_plan.path
    open_engine(path)
    if fact == "engine":
        save_plan(path, NETWORK, engine_fields(NETWORK, "tensorrt-rtx"), b"another plan")
    elif fact == "runtime":
        sys.modules["tensorrt_rtx"].__version__ = "1.7.2.5"
    else:
        gpu, driver = WITH_A10.gpus[0], WITH_A10.version
        change = {"gpu": lambda: (replace(gpu, name="NVIDIA A40"), driver), "driver": lambda: (gpu, "590.1")}[fact]()
        facts = replace(WITH_A10, gpus=change[:1], version=change[1])
        monkeypatch.setattr(tensorrt_refusals, "driver_facts", lambda: facts)
    capsys.readouterr()
    open_engine(path)
    assert "first use on" in capsys.readouterr().err


@pytest.mark.parametrize(("executed", "verifies"), [(True, False), (False, True), (None, True)])
def test_what_the_exporter_ran_on_this_machine_is_not_verified_again(accepted, memory, capsys, executed, verifies):
    open_engine(accepted("tensorrt", executed=executed).path)
    assert ("first use on" in capsys.readouterr().err) == verifies


def test_what_the_exporter_ran_is_verified_again_with_another_runtime(accepted, memory, capsys):
    open_engine(accepted("tensorrt_lean", executed=True).path)
    assert "first use on NVIDIA A10, driver 580.95.05, tensorrt_lean 10.13.0.35" in capsys.readouterr().err


@pytest.mark.parametrize(
    "profile", [{"min": 1, "opt": 1, "max": 1}, {"min": 3, "opt": 3, "max": 3}, {"min": 20, "opt": 32, "max": 32}]
)
def test_a_plan_that_does_not_take_the_batch_of_its_reference(accepted, memory, capsys, profile):
    open_engine(accepted(batch_profiles=[profile]).path)
    assert "unet.plan: verified" in capsys.readouterr().err


def test_an_engine_that_differs_is_not_used(tmp_path, accepted, memory, plan_cache, capsys):
    wrong = GaussianNetwork(PROCESS, 0.2, 0.51)
    path = accepted(network=wrong).path
    for _ in range(2):  # and is not taken for verified the next time
        with pytest.raises(VerificationError, match="it differs from NumPy; build it again with"):
            open_engine(path)
    assert main(["--engine", str(path), "--out", str(tmp_path / "out")]) == 3
    said = capsys.readouterr().err
    assert "     t  relative error   allowed" in said
    assert "too large" in said
    assert not (tmp_path / "out").exists()
    assert not (plan_cache / "verified").exists()


def test_a_reference_that_was_changed(accepted, memory):
    path = accepted().path
    path.with_name("unet.plan.golden.npz").write_bytes(b"")
    with pytest.raises(InputError, match="unet.plan.golden.npz: SHA-256 is .*export.to_trt"):
        open_engine(path)
