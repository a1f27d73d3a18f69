"""Every rewrite leaves a random network what it was, at batches of 1, 2 and 5 whose samples and timesteps differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings

from diffusion.errors import InputError
from export import openvino_graph
from export.fold_time import fold_time
from export.foreign_network import prepare
from export.network_io import tell_inputs_apart, with_contract_names
from export.normalization import in_cuda_bf16_form, write_group_norm
from export.openvino_graph import rewrite_for_openvino
from tests.export.random_graphs import NUM_TIMESTEPS, random_networks, run

BATCHES = (1, 2, 5)


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return fold_time(model, NUM_TIMESTEPS)[0]
    except InputError:
        assume(False)
        raise


def for_openvino(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rewrite_for_openvino(copy, tell_inputs_apart(copy.graph, "")[1].name)
    return copy


REWRITES: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "names": lambda model: with_contract_names(model, ""),
    "folded": folded,
    "openvino": for_openvino,
    "folded for openvino": lambda model: for_openvino(folded(model)),
    "group": lambda model: write_group_norm(model, "group")[0],
    "group and back": lambda model: write_group_norm(write_group_norm(model, "group")[0], "instance")[0],
    "cuda": lambda model: in_cuda_bf16_form(model)[0],
}


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_graph, "_MIN_MULTIPLICATIONS", 1)


@pytest.mark.parametrize("name", list(REWRITES))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(original=random_networks())
def test_a_rewritten_network_is_the_same(name: str, original: onnx.ModelProto) -> None:
    try:
        expected = run(original, BATCHES)
    except Exception:  # ONNX Runtime's exceptions have no common base
        assume(False)
    for found, wanted in zip(run(REWRITES[name](prepare(original, "network")), BATCHES), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * max(1.0, np.abs(wanted).max()))
