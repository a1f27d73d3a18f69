"""Which of several weights in a folder are read: those that diffusers reads, or none."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import DDPMPipeline, UNet2DModel

from diffusion.errors import InputError
from runtime.engines.checkpoint_weights import INDEX, PICKLE, PICKLE_INDEX, SAFETENSORS
from runtime.engines.torch_checkpoint import TorchEngine, load_checkpoint
from tests.checkpoints import save_tiny_checkpoint

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("saved") / "checkpoint")


@pytest.fixture
def unet(saved: Path, tmp_path: Path) -> Path:
    """The unet folder of a copy that a test may spoil, without its weights."""
    folder = Path(shutil.copytree(saved, tmp_path / "checkpoint"))
    (folder / "unet" / SAFETENSORS).unlink()
    return folder / "unet"


@pytest.fixture(scope="module")
def state(saved: Path) -> State:
    return safetensors.torch.load_file(saved / "unet" / SAFETENSORS)


def scaled(state: State, factor: float) -> State:
    return {name: factor * tensor for name, tensor in state.items()}


def save_single(unet: Path, state: State) -> None:
    safetensors.torch.save_file(state, unet / SAFETENSORS)


def save_shards(unet: Path, state: State) -> None:
    names = sorted(state)
    parts = {"first": names[: len(names) // 2], "second": names[len(names) // 2 :]}
    for part, held in parts.items():
        safetensors.torch.save_file({name: state[name] for name in held}, unet / f"{part}.safetensors")
    places = {name: f"{part}.safetensors" for part, held in parts.items() for name in held}
    (unet / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": places}))


def save_pickle(unet: Path, state: State) -> None:
    torch.save(state, unet / PICKLE)


def save_pickle_shards(unet: Path, state: State) -> None:
    torch.save(state, unet / "part.bin")
    (unet / PICKLE_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, "part.bin")}))


def save_variant(unet: Path, state: State) -> None:
    safetensors.torch.save_file(state, unet / "diffusion_pytorch_model.fp16.safetensors")


KINDS = {
    "single": save_single,
    "shards": save_shards,
    "pickle": save_pickle,
    "pickle shards": save_pickle_shards,
    "variant": save_variant,
}
# What diffusers reads only with these arguments.
WHEN_TOLD = {"pickle shards": {"use_safetensors": False}, "variant": {"variant": "fp16"}}
MIXTURES = [names for size in range(6) for names in itertools.combinations(KINDS, size)]


@pytest.mark.parametrize("names", MIXTURES, ids=lambda names: "+".join(names) or "none")
def test_of_several_weights_those_of_diffusers_are_read(unet: Path, state: State, names: tuple[str, ...]) -> None:
    for place, name in enumerate(names):
        KINDS[name](unet, scaled(state, 2.0 + place))
    try:
        theirs = DDPMPipeline.from_pretrained(unet.parent).unet.state_dict()
    except OSError:
        if len(names) != 1:  # none, or several of which none comes first
            with pytest.raises(InputError, match=re.escape(str(unet))):
                load_checkpoint(unet.parent, allow_pickle=True)
            return
        theirs = DDPMPipeline.from_pretrained(unet.parent, **WHEN_TOLD[names[0]]).unet.state_dict()
    checkpoint = load_checkpoint(unet.parent, allow_pickle=True)
    ours = checkpoint.unet.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_of_a_variant_and_shards_of_a_pickle_neither_comes_first(unet: Path, state: State) -> None:
    save_pickle_shards(unet, state)
    with pytest.raises(
        InputError, match=r"names shards that are pickles, .*safe_serialization=True, or .*`allow_pickle=True`"
    ):
        load_checkpoint(unet.parent)
    save_variant(unet, state)
    for allow_pickle in (False, True):
        with pytest.raises(InputError, match=r"index\.json, diffusion_pytorch_model\.fp16\.safetensors.*leave the one"):
            load_checkpoint(unet.parent, allow_pickle)


def save_variant_as_diffusers(unet: Path, state: State, variant: str, **arguments: Any) -> None:
    network = UNet2DModel.from_config(json.loads((unet / "config.json").read_text()))
    network.load_state_dict(state)
    network.to(torch.float16).save_pretrained(unet, variant=variant, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"max_shard_size": "30KB"},
        {"safe_serialization": False},
        {"safe_serialization": False, "max_shard_size": "30KB"},
    ],
    ids=["single", "shards", "pickle", "pickle shards"],
)
def test_variants_as_diffusers_writes_them(unet: Path, state: State, arguments: dict[str, Any]) -> None:
    save_variant_as_diffusers(unet, state, "fp16", **arguments)
    safe = arguments.get("safe_serialization", True)
    theirs = DDPMPipeline.from_pretrained(unet.parent, variant="fp16", use_safetensors=safe)
    if not safe:
        with pytest.raises(InputError, match="`allow_pickle=True`"):
            load_checkpoint(unet.parent)
    ours = load_checkpoint(unet.parent, allow_pickle=not safe).unet.state_dict()
    expected = theirs.unet.state_dict()
    assert all(ours[name].dtype == torch.float32 and torch.equal(ours[name], expected[name]) for name in expected)
    save_variant_as_diffusers(unet, state, "ema")
    with pytest.raises(InputError, match="leave the one that is meant"):
        load_checkpoint(unet.parent, allow_pickle=True)


def test_shards_of_a_variant_by_their_older_name(unet: Path, state: State) -> None:
    save_shards(unet, state)
    (unet / INDEX).rename(unet / "diffusion_pytorch_model.safetensors.fp16.index.json")
    ours = load_checkpoint(unet.parent).unet.state_dict()
    assert all(torch.equal(ours[name], state[name]) for name in state)


def test_shards_as_diffusers_writes_them(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "checkpoint"))
    expected = load_checkpoint(folder)
    (folder / "unet" / SAFETENSORS).unlink()
    UNet2DModel.from_pretrained(saved / "unet").save_pretrained(folder / "unet", max_shard_size="60KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    found = load_checkpoint(folder)
    expected_state = expected.unet.state_dict()
    assert all(torch.equal(tensor, expected_state[name]) for name, tensor in found.unet.state_dict().items())
    # Their hash covers every shard, and what train.json says of one file does not fit them.
    shard = min((folder / "unet").glob("*.safetensors"))
    tensors = safetensors.torch.load_file(shard)
    name = min(tensors)
    safetensors.torch.save_file(tensors | {name: tensors[name] + 1}, shard)
    assert load_checkpoint(folder).sha256 not in (found.sha256, expected.sha256)


def test_one_file_has_its_own_hash(saved: Path) -> None:
    content = (saved / "unet" / SAFETENSORS).read_bytes()
    assert load_checkpoint(saved).sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda places: places.update({"conv_in.bias": "../first.safetensors"}), r"expected files in its own folder"),
        (lambda places: places.update({"conv_in.bias": "/etc/passwd"}), r"expected files in its own folder"),
        (lambda places: places.update({"conv_in.bias": ""}), r"expected files in its own folder"),
        (lambda places: places.update({"conv_in.bias": "third.safetensors"}), r"'third\.safetensors', which is not"),
        (lambda places: places.update({"conv_in.bias": "config.json"}), r"shards that end in \.safetensors"),
        (lambda places: places.update({"conv_in.bias": 3}), r"has no weight_map"),
        (lambda places: places.update({"conv_in.bias": "second.safetensors"}), r"'conv_in\.bias' is in second"),
        (lambda places: places.update({"ghost": "second.safetensors"}), r"'ghost' is in second.*none of the files"),
        (lambda places: places.clear(), r"has no weight_map"),
    ],
)
def test_an_index_that_is_wrong_is_named(unet: Path, state: State, change, words: str) -> None:
    save_single(unet, state)  # which is no way out
    save_shards(unet, state)
    index = json.loads((unet / INDEX).read_text())
    change(index["weight_map"])
    (unet / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=words) as error:
        load_checkpoint(unet.parent)
    assert INDEX in str(error.value)


def test_a_tensor_in_two_shards_is_refused(unet: Path, state: State) -> None:
    save_shards(unet, state)
    second = safetensors.torch.load_file(unet / "second.safetensors")
    safetensors.torch.save_file(second | {"conv_in.bias": state["conv_in.bias"] + 1}, unet / "second.safetensors")
    with pytest.raises(InputError, match=r"'conv_in\.bias' is in first\.safetensors and in second\.safetensors"):
        load_checkpoint(unet.parent)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": []}', "[" * 100_000, '{"weight_map": null}'])
def test_an_index_that_is_none(unet: Path, text: str) -> None:
    (unet / INDEX).write_text(text)
    with pytest.raises(InputError, match=INDEX):
        load_checkpoint(unet.parent)


def test_a_link_to_nothing_is_no_reason_to_read_the_next_file(unet: Path, state: State) -> None:
    save_single(unet, state)
    (unet / INDEX).symlink_to("../../blobs/gone")
    with pytest.raises(InputError, match=r"is a link to \.\./\.\./blobs/gone, which is not there"):
        load_checkpoint(unet.parent)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_types_that_no_weights_have(unet: Path, state: State, dtype: torch.dtype) -> None:
    save_pickle(unet, state | {"conv_in.bias": state["conv_in.bias"].to(dtype)})
    with pytest.raises(InputError, match=rf"conv_in\.bias is of type {str(dtype).removeprefix('torch.')} .*float32"):
        load_checkpoint(unet.parent, allow_pickle=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types_that_diffusers_makes_float32_of(unet: Path, state: State, dtype: torch.dtype) -> None:
    save_single(unet, {name: tensor.to(dtype) for name, tensor in state.items()})
    theirs = DDPMPipeline.from_pretrained(unet.parent).unet.state_dict()
    ours = load_checkpoint(unet.parent).unet.state_dict()
    assert all(ours[name].dtype == torch.float32 and torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "odd",
    [
        {3: torch.zeros(1)},
        {"conv_in.bias": torch.zeros(8).to_sparse()},
        {"conv_in.bias": torch.zeros(8, device="meta")},
        {"conv_in.bias": 1.0},
        {"mid_block.attentions.0.query.bias": torch.zeros(16)},
        {"conv_in.bias": torch.full((8,), torch.inf)},
        {"conv_in.bias": torch.full((8,), 1e300, dtype=torch.float64)},
    ],
    ids=["key", "sparse", "meta", "number", "twice", "infinite", "too large"],
)
def test_pickles_of_other_things(unet: Path, state: State, odd: dict) -> None:
    save_pickle(unet, state | odd)
    with pytest.raises(InputError, match=PICKLE):
        load_checkpoint(unet.parent, allow_pickle=True)


def test_the_identity_of_a_network_covers_its_configuration(saved: Path, tmp_path: Path) -> None:
    expected = TorchEngine(saved)
    folder = Path(shutil.copytree(saved, tmp_path / "checkpoint"))
    path = folder / "unet" / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"_name_or_path": "elsewhere"}))
    assert TorchEngine(folder).sha256 == expected.sha256
    path.write_text(json.dumps(fields | {"mid_block_scale_factor": 2}))  # the same weights, another network
    assert TorchEngine(folder).sha256 != expected.sha256
