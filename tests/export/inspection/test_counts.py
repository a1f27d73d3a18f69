"""How large networks are: by their graphs, by PyTorch's own counter, by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import openvino
import pytest
import torch
from onnx import TensorProto, helper

from benchmarks.networks import CIFAR10_UNET, random_network
from diffusion.errors import InputError
from export import ExportRequest, export_onnx, export_openvino
from export.inspection.counts import count_module, count_onnx, count_openvino
from runtime.engines.torch_checkpoint import Network, load_checkpoint
from tests.checkpoints import save_tiny_checkpoint

CHW = (3, 16, 8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    save_tiny_checkpoint(folder / "checkpoint", channels=3, size=(16, 8))
    export_onnx(ExportRequest(folder / "unet.onnx", folder / "checkpoint"))
    export_openvino(ExportRequest(folder / "unet.xml", onnx=folder / "unet.onnx"))
    return folder


def test_a_graph_and_an_engine_have_the_operations_of_the_module(exported: Path) -> None:
    unet = load_checkpoint(exported / "checkpoint").unet
    module = count_module(Network(unet), CHW)
    graph = count_onnx(onnx.load(str(exported / "unet.onnx")))
    assert module.parameters == sum(each.numel() for each in unet.parameters())
    assert module.flops_per_image == graph.flops_per_image
    assert module.operators["Conv2d"] == graph.operators["Conv"]
    # The engine's time path is folded: its linear layers are gone.
    linear = [unet.time_embedding.linear_1, unet.time_embedding.linear_2]
    linear += [each.time_emb_proj for each in unet.modules() if hasattr(each, "time_emb_proj")]
    folded = sum(2 * each.in_features * each.out_features for each in linear)
    engine = count_openvino(exported / "unet.xml")
    assert engine.flops_per_image == module.flops_per_image - folded
    assert engine.operators["Convolution"] == module.operators["Conv2d"]


def test_the_network_of_the_paper() -> None:
    with torch.device("meta"):
        from diffusers import UNet2DModel

        network = UNet2DModel(**CIFAR10_UNET).eval()
    counts = count_module(Network(network), (3, 32, 32))
    assert counts.parameters == 35_746_307
    assert counts.flops_per_image == 12_443_713_536  # 12.44 GFLOP


def make_graph(nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, tuple[int, ...]]]) -> onnx.ModelProto:
    tensors = [
        helper.make_tensor(name, kind, shape, [1] * int(torch.Size(shape).numel()))
        for name, (kind, shape) in weights.items()
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


F = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("nodes", "weights", "flops"),
    [
        # 2 · outputs · inputs of each: [1, 6, 6, 8] of 4 · 3 · 3.
        ([("Conv", ["x", "w"], {"pads": [1] * 4})], {"w": (F, (6, 4, 3, 3))}, 2 * 6 * 48 * 36),
        ([("Conv", ["x", "w"], {"pads": [1] * 4, "group": 2})], {"w": (F, (6, 2, 3, 3))}, 2 * 6 * 48 * 18),
        ([("Conv", ["x", "w"], {"strides": [2, 2]})], {"w": (F, (5, 4, 2, 2))}, 2 * 5 * 12 * 16),
        ([("ConvTranspose", ["x", "w"], {"strides": [2, 2]})], {"w": (F, (4, 5, 2, 2))}, 2 * 4 * 48 * 20),
        ([("MatMul", ["x", "w"], {})], {"w": (F, (8, 7))}, 2 * 4 * 6 * 7 * 8),
        ([("Relu", ["x"], {})], {}, 0),
    ],
)
def test_by_hand(nodes: list[tuple], weights: dict, flops: int) -> None:
    kind, inputs, attributes = nodes[0]
    counts = count_onnx(make_graph([helper.make_node(kind, inputs, ["y"], **attributes)], weights))
    assert counts.flops_per_image == flops
    assert counts.operators == {kind: 1}
    assert counts.parameters == sum(int(torch.Size(shape).numel()) for _, shape in weights.values())


def test_openvino_by_hand(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4, group=2),
        helper.make_node("ConvTranspose", ["a", "v"], ["b"], strides=[2, 2]),
        helper.make_node("MatMul", ["b", "u"], ["y"]),
    ]
    weights = {"w": (F, (6, 2, 3, 3)), "v": (F, (6, 5, 2, 2)), "u": (F, (16, 3))}
    onnx.save(make_graph(nodes, weights), str(tmp_path / "net.onnx"))
    openvino.save_model(openvino.convert_model(tmp_path / "net.onnx"), tmp_path / "net.xml", compress_to_fp16=False)
    counts = count_openvino(tmp_path / "net.xml")
    assert counts.flops_per_image == 2 * 6 * 48 * 18 + 2 * 6 * 48 * 20 + 2 * 5 * 12 * 3 * 16
    assert counts.flops_per_image == count_onnx(onnx.load(str(tmp_path / "net.onnx"))).flops_per_image
    assert counts.parameters >= sum(int(torch.Size(shape).numel()) for _, shape in weights.values())


def test_a_size_that_is_not_known_is_not_guessed() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=F),
        helper.make_node("MatMul", ["w", "b"], ["y"]),
    ]
    assert count_onnx(make_graph(nodes, {"w": (F, (3, 4))})).flops_per_image is None


def test_an_operator_of_somebody_elses_with_a_known_name() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18, "my" : 1]>
        net (float[N,1,4,4] x, float[N] t) => (float[N,1,4,4] prediction) { prediction = my.MatMul(x) }"""
    )
    assert count_onnx(model).flops_per_image is None


def test_linear_attention_is_counted_too() -> None:
    network = Network(random_network(0, out_channels=1, sample_size=8, in_channels=1, block_out_channels=(8, 8),
                                     down_block_types=("AttnDownBlock2D",) * 2, up_block_types=("AttnUpBlock2D",) * 2,
                                     layers_per_block=1, norm_num_groups=4))  # fmt: skip
    with_attention = count_module(network, (1, 8, 8)).flops_per_image
    assert with_attention is not None
    assert with_attention > sum(
        2 * each.weight.numel() for each in network.modules() if isinstance(each, torch.nn.Linear)
    )


@pytest.mark.parametrize("text", ["", "{}", "<net", "<other/>", "<net><layers/></net>"])
def test_no_network_of_openvino(tmp_path: Path, text: str) -> None:
    (tmp_path / "unet.xml").write_text(text)
    with pytest.raises(InputError, match=r"unet\.xml: (is not XML|holds no network)"):
        count_openvino(tmp_path / "unet.xml")
