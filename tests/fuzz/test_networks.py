"""Any ONNX file that ONNX Runtime runs: equal to ONNX Runtime, sample by sample, or not exit 0."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

import export.to_onnx
import export.to_openvino
import export.to_trt
import runtime.sample
from tests.fuzz.networks import SPACING, Network, networks
from tests.fuzz.outcome import Outcome, run

BATCHES = (5, 2, 1)


def sampled(network: Network, folder: Path, engine: str, out: str, batch_size: int, *words: str) -> Outcome:
    batch = network.baked_batch or batch_size
    argv = ["--engine", engine, "--num", "5", "--batch-size", str(batch), "--format", "npy", "--out", out]
    argv += ["--steps", str(network.steps), "--spacing", SPACING, *words]
    outcome = run(runtime.sample.main, argv, folder)
    # Samples that are not finite are refused one by one: the others are kept.
    outcome.check(may_keep=lambda name: name.startswith(out) and outcome.code == 3)
    assert not (outcome.code == 0 and network.ends == "label"), f"{out}: nobody said which class\n{network!r}"
    return outcome


def check_images(network: Network, folder: Path, out: str) -> None:
    reference = network.reference(folder / "net.onnx", 5)
    if reference is None:
        return
    x_0, uncertain = reference
    found = np.load(folder / out / "samples.npy")
    assert np.isfinite(x_0).all(), f"{out}: the reference is not finite, the samples are"
    tolerance = 5e-4 * max(1.0, np.abs(x_0).max()) + 50 * uncertain.max()
    errors = np.abs(found - x_0).max(axis=(1, 2, 3))
    assert errors.max() <= tolerance, f"{out}: samples are off by {errors}, allowed are {tolerance}\n{network!r}"


@pytest.fixture
def folders(tmp_path: Path):
    """Empty folders, one after the other."""

    def folder() -> Path:
        shutil.rmtree(tmp_path / "case", ignore_errors=True)
        (tmp_path / "case").mkdir()
        return tmp_path / "case"

    return folder


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "openvino"])
def test_the_runtime_equals_onnx_runtime_or_refuses(fuzz, folders, backend):
    batches = itertools.cycle(BATCHES)

    def check(network: Network) -> None:
        folder = folders()
        network.save(folder / "net.onnx")
        words = ["--backend", backend, *network.flags]
        if sampled(network, folder, "net.onnx", "out", next(batches), *words).code == 0:
            check_images(network, folder, "out")

    fuzz(networks(), check, 0.15)


def test_an_exported_engine_equals_onnx_runtime_or_is_refused(fuzz, folders):
    def check(network: Network) -> None:
        folder = folders()
        network.save(folder / "net.onnx")
        exported = run(export.to_openvino.main, ["--onnx", "net.onnx", "--out", "net.xml", *network.flags], folder)
        exported.check()
        if exported.code == 0 and sampled(network, folder, "net.xml", "out", 5).code == 0:
            check_images(network, folder, "out")

    fuzz(networks(), check, 0.1)


def test_a_plan_is_built_or_refused(fuzz, folders):
    def check(network: Network) -> None:
        folder = folders()
        network.save(folder / "net.onnx")
        words = ["--onnx", "net.onnx", "--out", "net.plan", "--compute-capabilities", "8.6", *network.flags]
        run(export.to_trt.main, words, folder, seconds=60.0).check()

    fuzz(networks(blocks=2), check, 0.02)
