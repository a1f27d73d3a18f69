"""OpenAI's checkpoints: the network that is read equals the original project's own, at every size and setting."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.errors import InputError
from diffusion.spacing import spaced_timesteps
from export.checkpoints.flags import parsed_flags
from export.checkpoints.openai_respacing import respaced_timesteps
from export.checkpoints.registry import add_checkpoint_flags, read_foreign
from tests.export.checkpoints.openai_networks import FLAGS, guided_network, improved_network, save
from tests.export.checkpoints.relative_errors import relative_errors
from tests.original_projects import original

TOLERANCE = 1e-5

# Arguments of the original network, and the flags that its tensors do not tell.
GUIDED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "legacy order": ({}, {}),
    "new order": ({"use_new_attention_order": True}, {"use_new_attention_order": True}),
    "one head": ({"num_heads": 1}, {"num_heads": 1}),
    "width of a head": ({"num_head_channels": 8}, {"num_head_channels": 8}),
    "heads of the output blocks": ({"num_heads_upsample": 2}, {"num_heads_upsample": 2}),
    "up and down by convolution": ({"resblock_updown": False}, {}),
    "no scale-shift": ({"use_scale_shift_norm": False}, {}),
    "neither": ({"resblock_updown": False, "use_scale_shift_norm": False}, {}),
    "attention at two widths": ({"attention_resolutions": (1, 2)}, {}),
    "attention at two widths, new order": (
        {"attention_resolutions": (1, 2), "num_head_channels": 16, "use_new_attention_order": True},
        {"num_head_channels": 16, "use_new_attention_order": True},
    ),
    "widths that one width of a head does not divide": (
        {"attention_resolutions": (1, 2), "channel_mult": (3, 4)},
        {},
    ),
    "attention in the middle alone": ({"attention_resolutions": ()}, {}),
    "narrower than the embedding": ({"channel_mult": (0.5, 1), "model_channels": 64}, {}),
    "gray, fixed variance": ({"in_channels": 1, "out_channels": 1}, {}),
    "one level of odd size": ({"channel_mult": (1,), "image_size": 9, "attention_resolutions": ()}, {"image_size": 9}),
    "three levels": (
        {"channel_mult": (1, 2, 3), "image_size": 20, "num_res_blocks": 2, "attention_resolutions": (2, 4)},
        {"image_size": 20},
    ),
}


def read(network: torch.nn.Module, folder: Path, **flags: Any):
    return read_foreign(save(network, folder / "model.pt"), FLAGS | flags, allow_pickle=True)


@pytest.mark.parametrize("kind", GUIDED)
def test_guided_diffusion(kind: str, tmp_path: Path) -> None:
    arguments, flags = GUIDED[kind]
    network = guided_network(**arguments)
    checkpoint = read(network, tmp_path, **flags)
    errors = relative_errors(network, checkpoint.network, checkpoint.process.sample.chw, 1000, 1.0)
    assert max(errors) <= TOLERANCE
    assert checkpoint.num_parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_improved_diffusion(num_heads: int, scale_shift: bool, tmp_path: Path) -> None:
    network = improved_network(
        num_heads=num_heads, use_scale_shift_norm=scale_shift, channel_mult=(1, 2, 2), attention_resolutions=(2, 4)
    )
    checkpoint = read(network, tmp_path, num_heads=num_heads)
    assert max(relative_errors(network, checkpoint.network, (3, 16, 16), 1000, 1.0)) <= TOLERANCE


def test_rescaled_timesteps_are_fractions_of_ours(tmp_path: Path) -> None:
    network = improved_network()
    checkpoint = read(network, tmp_path, diffusion_steps=4000, rescale_timesteps=True)
    assert max(relative_errors(network, checkpoint.network, (3, 16, 16), 4000, 1000 / 4000)) <= TOLERANCE
    as_they_are = read(network, tmp_path, diffusion_steps=4000, rescale_timesteps=False)
    assert max(relative_errors(network, as_they_are.network, (3, 16, 16), 4000, 1.0)) <= TOLERANCE
    assert np.max(relative_errors(network, as_they_are.network, (3, 16, 16), 4000, 0.25)) > 0.01


def refused(network: torch.nn.Module | dict[str, torch.Tensor], folder: Path, flags: dict[str, Any]) -> str:
    tensors = network if isinstance(network, dict) else network.state_dict()
    torch.save(tensors, folder / "model.pt")
    with pytest.raises(InputError) as error:
        read_foreign(folder / "model.pt", flags, allow_pickle=True)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name", ["image_size", "noise_schedule", "diffusion_steps", "num_heads", "use_new_attention_order"]
)
def test_what_no_tensor_tells_is_asked_for(name: str, tmp_path: Path) -> None:
    flags = {flag: value for flag, value in FLAGS.items() if flag != name}
    message = refused(guided_network(), tmp_path, flags)
    assert f"--{name} is not given" in message or f"--{name}, " in message
    assert "--model guided-64, guided-128" in message


def test_rescaling_is_asked_for_where_it_matters(tmp_path: Path) -> None:
    message = refused(guided_network(), tmp_path, FLAGS | {"diffusion_steps": 4000})
    assert "--rescale_timesteps is not given" in message


def test_the_order_does_not_matter_with_one_head(tmp_path: Path) -> None:
    network = guided_network(num_heads=1)
    flags = {name: value for name, value in FLAGS.items() if name != "use_new_attention_order"} | {"num_heads": 1}
    save(network, tmp_path / "model.pt")
    checkpoint = read_foreign(tmp_path / "model.pt", flags, allow_pickle=True)
    assert max(relative_errors(network, checkpoint.network, (3, 16, 16), 1000)) <= TOLERANCE


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "learn_sigma": ({"learn_sigma": False}, "--learn_sigma is False (--learn_sigma), but out.2.weight says True"),
    "class_cond": ({"class_cond": True}, "--class_cond is True (--class_cond), but label_emb.weight says False"),
    "num_channels": ({"num_channels": 64}, "--num_channels is 64 (--num_channels), but time_embed.0.weight says 32"),
    "num_res_blocks": ({"num_res_blocks": 3}, "but output_blocks says 1"),
    "scale-shift": ({"use_scale_shift_norm": False}, "input_blocks.1.0.emb_layers.1.weight says True"),
    "updown": (
        {"resblock_updown": False},
        "--resblock_updown is False (--resblock_updown), but input_blocks say",
    ),
    "multipliers": ({"channel_mult": "1,2,2"}, "--channel_mult is 1,2,2, but the widths of the convolutions say 1,2"),
    "attention": ({"attention_resolutions": "16"}, "at image_size 16 the tensors have attention at 8"),
    "image size and attention": ({"attention_resolutions": "8", "image_size": 32}, "have attention at 16"),
    "image size": ({"image_size": 15}, "image_size is 15, expected a multiple of 2"),
    "no size": ({"image_size": 0}, "image_size is 0, expected a multiple of 2"),
    "heads": ({"num_heads": 5}, "--num_heads is 5, but there is attention over 64 channels"),
    "no heads": ({"num_heads": 0}, "--num_heads is 0"),
    "head channels": ({"num_head_channels": 48}, "--num_head_channels is 48, but there is attention over 64 channels"),
    "steps": ({"diffusion_steps": 0, "rescale_timesteps": False}, "num_train_timesteps is 0, expected 1 to"),
    "few steps": ({"diffusion_steps": 10, "rescale_timesteps": True}, "beta_end is 2.0, expected"),
    "schedule": ({"noise_schedule": "quadratic"}, "--noise_schedule is 'quadratic', expected one of linear, cosine"),
    "number": ({"num_heads": "four"}, "--num_heads is 'four', expected a whole number"),
    "truth": ({"use_new_attention_order": "maybe"}, "expected True or False"),
    "numbers": ({"channel_mult": "1;2"}, "--channel_mult is '1;2', expected numbers with commas between them"),
    "endless": ({"attention_resolutions": "8,inf"}, "'8,inf', expected numbers with commas between them"),
    "model": ({"model": "guided-1024"}, "--model is 'guided-1024', expected one of guided-64,"),
    "another project": ({"beta_schedule": "linear"}, "--beta_schedule is no flag of OpenAI's improved- or guided-diff"),
    "no project": ({"colour": 3}, "no checkpoint has a flag 'colour'"),
    "published": ({"model": "improved-lsun"}, "--image_size is 16, but --model improved-lsun was trained with 256"),
    "of another project": ({"model": "ddpm-cifar10"}, "--model ddpm-cifar10 is not of OpenAI's improved- or guided-d"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_flags_that_do_not_fit(kind: str, tmp_path: Path) -> None:
    flags, says = WRONG[kind]
    assert says in refused(guided_network(), tmp_path, FLAGS | flags)


def test_a_published_model_that_it_is_not(tmp_path: Path) -> None:
    message = refused(guided_network(), tmp_path, {"model": "guided-256-uncond"})
    assert "--num_channels is 256 (--model guided-256-uncond), but time_embed.0.weight says 32" in message


def test_the_multipliers_betray_the_size_of_the_image(tmp_path: Path) -> None:
    network = improved_network(channel_mult=(1, 2, 3, 4), attention_resolutions=(4,))
    says = "image_size is 128, but its channel multipliers 1,2,3,4 are those of 64"
    assert says in refused(network, tmp_path, FLAGS | {"image_size": 128})
    for flags in ({"image_size": 48}, {"image_size": 64}, {"image_size": 128, "channel_mult": "1,2,3,4"}):
        assert read(network, tmp_path, **flags).process.sample.height == flags["image_size"]


def test_everything_that_the_scripts_take_is_taken(tmp_path: Path) -> None:
    """Pasted from a command line of the project, values are texts."""
    pasted = """--attention_resolutions 8 --class_cond False --diffusion_steps 1000 --dropout 0.1 --image_size 16
        --learn_sigma True --noise_schedule linear --num_channels 32 --num_heads 4 --num_res_blocks 1
        --resblock_updown True --use_fp16 True --use_scale_shift_norm True --use_new_attention_order False
        --use_kl False --rescale_timesteps False --rescale_learned_sigmas False --use_checkpoint False
        --timestep_respacing 250 --predict_xstart False --num_heads_upsample -1 --num_head_channels -1"""
    network = guided_network()
    path = save(network, tmp_path / "model.pt")
    parser = argparse.ArgumentParser()
    add_checkpoint_flags(parser)
    checkpoint = read_foreign(path, parsed_flags(parser.parse_args(pasted.split())), allow_pickle=True)
    assert max(relative_errors(network, checkpoint.network, (3, 16, 16), 1000)) <= TOLERANCE


@pytest.mark.parametrize("total", [1000, 4000])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_process_is_the_projects_own(name: str, total: int, tmp_path: Path) -> None:
    process = read(
        guided_network(), tmp_path, noise_schedule=name, diffusion_steps=total, rescale_timesteps=True
    ).process
    module = original("guided_diffusion.gaussian_diffusion")
    np.testing.assert_allclose(process.schedule.betas, module.get_named_beta_schedule(name, total), rtol=1e-10)
    assert (process.prediction_type, process.variance_type, process.clip_sample) == ("epsilon", "learned_range", 1.0)


def test_prediction_and_fixed_variances(tmp_path: Path) -> None:
    network = guided_network(out_channels=3)
    plain = read(network, tmp_path).process
    assert (plain.prediction_type, plain.variance_type) == ("epsilon", "fixed_large")
    other = read(network, tmp_path, predict_xstart=True, sigma_small="True").process
    assert (other.prediction_type, other.variance_type) == ("sample", "fixed_small")


@pytest.mark.parametrize(("total", "respacing"), [(1000, "250"), (1000, "20"), (4000, "250"), (1000, "7")])
def test_respacing_is_linspace(total: int, respacing: str, tmp_path: Path) -> None:
    flags = {"diffusion_steps": total, "rescale_timesteps": False}
    process = read(guided_network(), tmp_path, **flags).process
    spacing = process.timestep_spacing
    theirs = sorted(original("guided_diffusion.respace").space_timesteps(total, respacing))
    assert spacing is not None
    ours = spaced_timesteps(spacing, int(respacing), process.schedule)
    assert sorted(int(each) for each in ours) == theirs


@pytest.mark.parametrize(
    ("total", "respacing"),
    [
        (1000, "250"),
        (1000, "1000"),
        (1000, "1"),
        (4000, "333"),
        (1000, "10,15,20"),
        (300, "10,15,20"),
        (11, "1,2"),
        (1000, "1,1"),
        (1000, "ddim25"),
        (1000, "ddim250"),
        (4000, "ddim50"),
        (1000, "ddim30"),
        (100, "ddim100"),
    ],
)
def test_the_timesteps_of_respacing(total: int, respacing: str) -> None:
    theirs = original("guided_diffusion.respace").space_timesteps(total, respacing)
    assert respaced_timesteps(respacing, total) == sorted(theirs)


@pytest.mark.parametrize("respacing", ["ddim998", "1001", "600,600"])
def test_respacing_that_the_original_refuses_too(respacing: str) -> None:
    with pytest.raises(ValueError, match="cannot"):
        original("guided_diffusion.respace").space_timesteps(1000, respacing)
    with pytest.raises(InputError, match="--timestep_respacing is"):
        respaced_timesteps(respacing, 1000)


@pytest.mark.parametrize("respacing", ["ddim0", "ddim", "0", "1,,2", "-3", "x", "1.5", "600,600"])
def test_respacing_that_is_none(respacing: str, tmp_path: Path) -> None:
    message = refused(guided_network(), tmp_path, FLAGS | {"timestep_respacing": respacing})
    assert f"--timestep_respacing is {respacing!r}, expected ddimN" in message


def test_what_draws_the_same_timesteps_is_told(tmp_path: Path) -> None:
    for respacing, flags in (
        ("250", "--steps 250 --spacing linspace"),
        ("ddim25", "--steps 25 --spacing leading"),
        ("2,3", "--timesteps 999,750,500,499,0"),
    ):
        notes = read(guided_network(), tmp_path, timestep_respacing=respacing).notes
        assert notes == (f"--timestep_respacing {respacing} is of sampling: give `python -m runtime.sample` {flags}",)


def test_averaged_weights_beside_it_are_named(tmp_path: Path) -> None:
    raw = save(guided_network(), tmp_path / "model000100.pt")
    assert read_foreign(raw, FLAGS, allow_pickle=True).notes == ()
    save(guided_network(), tmp_path / "ema_0.9999_000100.pt")
    (note,) = read_foreign(raw, FLAGS, allow_pickle=True).notes
    assert note == f"{raw}: is not averaged; ema_0.9999_000100.pt beside it is, and usually draws better images"
    assert read_foreign(tmp_path / "ema_0.9999_000100.pt", FLAGS, allow_pickle=True).notes == ()


TENSORS: dict[str, tuple[Any, str]] = {
    "missing": (
        lambda tensors: tensors.pop("middle_block.0.in_layers.0.bias"),
        "lacks middle_block.0.in_layers.0.bias [64], expected",
    ),
    "several": (
        lambda tensors: [tensors.pop(name) for name in ("out.0.bias", "out.0.weight")],
        "lacks out.0.weight [32] and 1 more",
    ),
    "unexpected": (lambda tensors: tensors.update(extra=torch.zeros(2)), "also holds extra [2], expected"),
    "shape": (lambda tensors: tensors.update({"out.0.bias": torch.zeros(31)}), "has shape [31], expected [32]"),
    "NaN": (lambda tensors: tensors["out.0.bias"].fill_(torch.nan), "out.0.bias holds values that are not finite"),
    "infinity": (lambda tensors: tensors["out.0.bias"][3:4].fill_(torch.inf), "out.0.bias holds values that are not"),
    "integers": (lambda tensors: tensors.update({"out.0.bias": torch.zeros(32).int()}), "is of type int32"),
    "volumes": (lambda tensors: tensors.update({"out.2.weight": torch.zeros(6, 32, 3, 3, 3)}), "expected 4 axes"),
    "no embedding": (
        lambda tensors: tensors.update({"time_embed.0.weight": torch.zeros(128, 0)}),
        "its timesteps are embedded in 0 channels",
    ),
    "no end": (lambda tensors: tensors.pop("out.2.weight"), "lacks out.2.weight"),
    "half of it": (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("output_blocks.3.")],
        "has 4 input_blocks and 3 output_blocks",
    ),
    "no levels": (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("output_blocks.1.2.")],
        "also holds input_blocks.3.0.skip_connection.weight",
    ),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_do_not_fit(kind: str, tmp_path: Path) -> None:
    change, says = TENSORS[kind]
    tensors = guided_network().state_dict()
    change(tensors)
    assert says in refused(tensors, tmp_path, FLAGS)


def test_half_precision_is_read_as_it_is(tmp_path: Path) -> None:
    network = guided_network().half().float()
    halves = {name: tensor.half() for name, tensor in network.state_dict().items()}
    torch.save(halves, tmp_path / "model.pt")
    checkpoint = read_foreign(tmp_path / "model.pt", FLAGS, allow_pickle=True)
    assert max(relative_errors(network, checkpoint.network, (3, 16, 16), 1000)) <= TOLERANCE
