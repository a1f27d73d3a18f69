"""What tells networks apart: every file that their weights are in."""

import hashlib
import itertools
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines import protobuf_wire
from runtime.engines.network_bytes import external_locations, network_sha256
from runtime.engines.opening import open_engine
from runtime.formats.sidecar import sidecar_path
from runtime.sample import main
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.openvino_files import save_engine

PROCESS = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 40), variance_type="fixed_large")
BACKENDS = ["onnxruntime", "openvino"]


def save(folder, mean, name="unet.onnx"):
    """Weights in a file beside the network's, which is the same for every mean."""
    path = GaussianNetwork(PROCESS, mean, 0.4).save_onnx(folder / name)
    (folder / "weights").unlink(missing_ok=True)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=100)
    return path


def test_a_file_that_holds_everything_is_its_hash(tmp_path):
    path = GaussianNetwork(PROCESS, 0.1, 0.4).save_onnx(tmp_path / "unet.onnx")
    assert network_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_is_not_resumed_with_other_weights(tmp_path, monkeypatch, capsys, backend):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, 0.1)
    flags = ["--backend", backend, "--num", "4", "--batch-size", "2", "--steps", "3", "--format", "png"]
    assert main(flags) == 0
    content = (tmp_path / "unet.onnx").read_bytes()
    assert main([*flags, "--resume"]) == 0
    save(tmp_path, -0.5)
    assert (tmp_path / "unet.onnx").read_bytes() == content
    assert main([*flags, "--resume"]) == 2
    assert "its engine_sha256 is" in capsys.readouterr().err


def test_an_engine_of_openvino_is_its_weights_too(tmp_path):
    engines = []
    for mean in (0.1, -0.5):
        path = save_engine(tmp_path / "unet.xml", GaussianNetwork(PROCESS, mean, 0.4))
        engines.append((path.read_bytes(), open_engine(path, threads=1).sha256))
    (xml, identity), (other_xml, other_identity) = engines
    if xml == other_xml:
        assert json.loads(sidecar_path(path).read_text())["sha256"] == hashlib.sha256(xml).hexdigest()
    assert identity != other_identity


def tensor(name="w"):
    return numpy_helper.from_array(np.arange(4, dtype=np.float32), name)


def outside(location):
    """A tensor whose values are in another file."""
    found = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    found.external_data.add(key="offset", value="0")
    found.external_data.add(key="location", value=location)
    return found


def sparse(location):
    indices = numpy_helper.from_array(np.arange(4), "i")
    return helper.make_sparse_tensor(outside(location), indices, [9])


def graph(**fields):
    result = onnx.GraphProto(name="g")
    for name, value in fields.items():
        getattr(result, name).append(value)
    return result


def node(**fields):
    attribute = onnx.AttributeProto(name="value")
    for name, value in fields.items():
        if name in ("t", "g", "sparse_tensor"):
            getattr(attribute, name).CopyFrom(value)
        else:
            getattr(attribute, name).append(value)
    return onnx.NodeProto(op_type="Constant", output=["p"], attribute=[attribute])


PLACES = {
    "initializer": graph(initializer=outside("w")),
    "sparse initializer": graph(sparse_initializer=sparse("w")),
    "constant": graph(node=node(t=outside("w"))),
    "constants": graph(node=node(tensors=outside("w"))),
    "sparse constant": graph(node=node(sparse_tensor=sparse("w"))),
    "sparse constants": graph(node=node(sparse_tensors=sparse("w"))),
    "subgraph": graph(node=node(g=graph(initializer=outside("w")))),
    "subgraphs": graph(node=node(graphs=graph(node=node(g=graph(node=node(t=outside("w"))))))),
}


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_wherever_they_are(tmp_path, place):
    path = tmp_path / "unet.onnx"
    path.write_bytes(onnx.ModelProto(graph=PLACES[place]).SerializeToString())
    assert external_locations(path) == {b"w"}
    hashes = [network_sha256(path)]
    for content in (b"0123", b"0124"):
        (tmp_path / "w").write_bytes(content)
        hashes.append(network_sha256(path))
    assert len(set(hashes)) == 3


def test_weights_of_functions_are_found(tmp_path):
    path = tmp_path / "unet.onnx"
    function = onnx.FunctionProto(name="f", node=[node(t=outside("a/b"))])
    path.write_bytes(onnx.ModelProto(functions=[function]).SerializeToString())
    assert external_locations(path) == {b"a/b"}


def test_all_files_count_and_not_their_order(tmp_path):
    path = tmp_path / "unet.onnx"
    hashes = set()
    for first, second in itertools.product((b"0", b"1"), repeat=2):
        (tmp_path / "a").write_bytes(first)
        (tmp_path / "b").write_bytes(second)
        model = onnx.ModelProto(graph=onnx.GraphProto(initializer=[outside("b"), tensor(), outside("a"), outside("b")]))
        path.write_bytes(model.SerializeToString())
        hashes.add(network_sha256(path))
    assert len(hashes) == 4


def test_beside_a_link_or_beside_the_file(tmp_path):
    """As in Hugging Face's cache."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    path = save(tmp_path / "blobs", 0.1)
    link = tmp_path / "snapshot" / "unet.onnx"
    link.symlink_to(path)
    expected = network_sha256(path)
    assert network_sha256(link) == expected
    (tmp_path / "snapshot" / "weights").symlink_to(tmp_path / "blobs" / "weights")
    assert network_sha256(link) == expected


def test_what_cannot_be_searched_has_no_name(tmp_path, monkeypatch):
    path = save(tmp_path, 0.1)
    monkeypatch.setattr(protobuf_wire, "MAX_FIELDS", 5)
    with pytest.raises(InputError, match="cannot be searched for the files that hold its weights"):
        network_sha256(path)
    with pytest.raises(InputError, match=r"other\.onnx: cannot be read"):
        network_sha256(tmp_path / "other.onnx")
