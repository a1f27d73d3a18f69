"""An ONNX file before it is opened: what tells networks apart, every file that their weights are in; and its seal."""

import hashlib
import itertools
import json
import os
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import METADATA_KEY, Process, SampleShape
from runtime.engines import onnx_file
from runtime.engines.onnx_file import read_onnx
from runtime.engines.onnx_runtime import OnnxRuntimeEngine
from runtime.engines.opening import open_engine
from runtime.engines.openvino_cpu import OpenVinoEngine
from runtime.formats.onnx_seal import SEAL_BYTES, SEAL_KEY, sealed, sealed_precision
from runtime.formats.precision import ENGINE_PRECISIONS
from runtime.formats.sidecar import sidecar_path
from runtime.sample import main
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.foreign_onnx import rounds_dynamically
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
    assert read_onnx(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


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


@pytest.mark.parametrize("kind", ["OnnxRuntimeEngine", "OpenVinoEngine"])
def test_a_file_that_is_written_again_while_it_is_opened(tmp_path, kind):
    """A backend opens it by its name, so the hash would be of the network before."""
    path = save(tmp_path, 0.5)
    file = read_onnx(path)
    engines = {"OnnxRuntimeEngine": OnnxRuntimeEngine, "OpenVinoEngine": OpenVinoEngine}
    assert engines[kind](path, file=file).sha256 == file.sha256
    os.utime(path, ns=(0, 1))
    with pytest.raises(InputError, match="unet.onnx: was written again while it was opened"):
        engines[kind](path, file=file)


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
    found = read_onnx(path)
    assert not found.is_whole
    hashes = [found.sha256]
    for content in (b"0123", b"0124"):
        (tmp_path / "w").write_bytes(content)
        hashes.append(read_onnx(path).sha256)
    assert len(set(hashes)) == 3


def test_weights_of_functions_are_found(tmp_path):
    path = tmp_path / "unet.onnx"
    function = onnx.FunctionProto(name="f", node=[node(t=outside("a/b"))])
    path.write_bytes(onnx.ModelProto(functions=[function]).SerializeToString())
    assert not read_onnx(path).is_whole
    without = read_onnx(path).sha256
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"0123")
    assert read_onnx(path).sha256 != without


def test_all_files_count_and_not_their_order(tmp_path):
    path = tmp_path / "unet.onnx"
    hashes = set()
    for first, second in itertools.product((b"0", b"1"), repeat=2):
        (tmp_path / "a").write_bytes(first)
        (tmp_path / "b").write_bytes(second)
        model = onnx.ModelProto(graph=onnx.GraphProto(initializer=[outside("b"), tensor(), outside("a"), outside("b")]))
        path.write_bytes(model.SerializeToString())
        hashes.add(read_onnx(path).sha256)
    assert len(hashes) == 4


def test_beside_a_link_or_beside_the_file(tmp_path):
    """As in Hugging Face's cache."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    path = save(tmp_path / "blobs", 0.1)
    link = tmp_path / "snapshot" / "unet.onnx"
    link.symlink_to(path)
    expected = read_onnx(path).sha256
    assert read_onnx(link).sha256 == expected
    (tmp_path / "snapshot" / "weights").symlink_to(tmp_path / "blobs" / "weights")
    assert read_onnx(link).sha256 == expected


def test_what_cannot_be_read_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path, 0.1)
    with pytest.raises(InputError, match=r"other\.onnx: no such file; make one with"):
        read_onnx(tmp_path / "other.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")  # would wait for its writer
    with pytest.raises(InputError, match=r"pipe\.onnx: is a pipe, expected a regular file; make one"):
        read_onnx(tmp_path / "pipe.onnx")
    monkeypatch.setattr(onnx_file, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(InputError, match="expected at most .*; save it with its weights in a file beside it"):
        read_onnx(path)


def test_names_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "unet.onnx"
    content = onnx.ModelProto(graph=graph(node=onnx.NodeProto(op_type="abc"))).SerializeToString()
    path.write_bytes(content.replace(b"abc", b"a\xffc"))
    with pytest.raises(InputError, match="cannot be read as an ONNX model"):
        read_onnx(path)


def sealed_file(folder, precision="fp32"):
    """As `export.to_onnx` leaves it."""
    path = GaussianNetwork(PROCESS, 0.1, 0.4).save_onnx(folder / "unet.onnx")
    path.write_bytes(sealed(path.read_bytes(), precision))
    return path


@pytest.fixture
def no_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)


@pytest.mark.parametrize("precision", ENGINE_PRECISIONS)
def test_a_file_of_ours_needs_no_library(tmp_path, no_onnx, precision):
    path = sealed_file(tmp_path, precision)
    found = read_onnx(path)
    assert found == onnx_file.OnnxFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), precision, has_digest=True)


def test_a_file_of_others_does(tmp_path, no_onnx):
    path = GaussianNetwork(PROCESS, 0.1, 0.4).save_onnx(tmp_path / "unet.onnx")
    with pytest.raises(DeviceUnavailableError, match=r"needs onnx, and the module 'onnx' is not.*ddpm-rt\[onnx\]"):
        read_onnx(path)


def test_a_sealed_file_is_an_onnx_file(tmp_path):
    path = sealed_file(tmp_path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.key for entry in model.metadata_props] == [METADATA_KEY, SEAL_KEY]
    for backend in BACKENDS:
        engine = open_engine(path, backend=backend)
        assert (engine.process, engine.precision) == (PROCESS, "fp32")


@pytest.mark.parametrize("precision", ENGINE_PRECISIONS)
def test_a_quantizer_keeps_the_seal_and_is_found_out(tmp_path, precision):
    path = sealed_file(tmp_path, precision)
    model = onnx.load(path)
    rounds_dynamically(model)
    onnx.save(model, path)
    assert SEAL_KEY in {entry.key for entry in onnx.load(path).metadata_props}
    assert read_onnx(path).precision == "int8"


def test_weights_that_are_moved_out_are_found(tmp_path):
    path = sealed_file(tmp_path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=100)
    assert not read_onnx(path).is_whole


def test_weights_that_are_exchanged_while_the_file_is_opened_are_noticed(tmp_path):
    file = read_onnx(save(tmp_path, 0.1))
    file.check_unchanged()
    save(tmp_path, -0.5, "other.onnx")  # writes the same file of weights
    with pytest.raises(InputError, match="weights: was written again while it was opened"):
        file.check_unchanged()


@given(data=st.data())
def test_a_seal_fits_one_file_alone(data):
    content = data.draw(st.binary(max_size=300))
    whole = sealed(content, "fp32")
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for file in (whole, bytes(changed), whole + b"\0", whole[1:], content):
        assert precision_of(file) == ("fp32" if file == whole else None)


def precision_of(file):
    body = file[:-SEAL_BYTES]
    try:
        return sealed_precision(len(body), hashlib.sha256(body).hexdigest(), file[-SEAL_BYTES:])
    except InputError:
        return None


def test_a_changed_byte_of_a_sealed_file_is_refused_and_one_of_its_seal_at_most_unseals_it(tmp_path):
    path = sealed_file(tmp_path)
    content = path.read_bytes()
    model, seal = len(content) - SEAL_BYTES, SEAL_BYTES
    for place in (*range(0, model, 97), model - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(
            InputError, match=r"unet\.onnx: was changed after it was exported.*seal says b'fp32 [0-9a-f]{64}'"
        ):
            read_onnx(path)
    refused = 0
    for place in range(model, model + seal):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            assert not read_onnx(path).has_digest  # it is a file of others now, and of the same network
        except InputError:
            refused += 1
    assert refused >= 64 + len("fp32 ")


def test_the_way_out_of_a_change_that_is_meant(tmp_path):
    path = sealed_file(tmp_path)
    model = onnx.load(path)
    weights = next(each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT)
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 2, weights.name))
    onnx.save(model, path)  # as long as it was, and the seal its last property
    with pytest.raises(InputError, match="take the metadata property ddpm-rt-seal out of it if the change is meant"):
        read_onnx(path)
    del model.metadata_props[[entry.key for entry in model.metadata_props].index(SEAL_KEY)]
    onnx.save(model, path)
    assert not read_onnx(path).has_digest
