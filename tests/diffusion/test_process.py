"""The JSON of a process, and the configs of diffusers that become one."""

import json

import pytest

from diffusion.diffusers_config import process_from_diffusers, process_to_diffusers
from diffusion.errors import InputError
from diffusion.noise_schedule import SCHEDULE_KINDS, NoiseSchedule
from diffusion.process import PREDICTION_TYPES, VARIANCE_TYPES, Process, SampleShape
from diffusion.spacing import SPACINGS

UNET = {"sample_size": 8, "in_channels": 1, "out_channels": 1}


def a_process(**changes) -> Process:
    fields = {"sample": SampleShape(1, 8, 8, 17), "schedule": NoiseSchedule.make("linear"), "clip_sample": 1.0}
    return Process(**(fields | changes))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
@pytest.mark.parametrize("clip_sample", [None, 2.5])
def test_json_round_trip(prediction_type, variance_type, clip_sample):
    process = a_process(
        prediction_type=prediction_type, variance_type=variance_type, clip_sample=clip_sample, checkpoint_sha256="ab"
    )
    assert Process.from_json_text(json.dumps(process.to_json())) == process


def test_the_json_object_is_the_documented_one():
    assert a_process(variance_type="fixed_large", checkpoint_sha256="00").to_json() == {
        "format": 1,
        "sample": {"channels": 1, "height": 8, "width": 8, "levels": 17},
        "schedule": {"kind": "linear", "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
        "prediction_type": "epsilon",
        "variance_type": "fixed_large",
        "clip_sample": 1.0,
        "checkpoint_sha256": "00",
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 3}, "format is 3, this version reads 1 and 2"),
        ({"format": None}, "format is None"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"variance_type": "learned"}, "variance_type is 'learned'"),
        ({"clip_sample": -1}, "clip_sample is -1"),
        ({"clip_sample": "yes"}, "clip_sample is 'yes'"),
        ({"sample": {"channels": 1, "height": 8}}, "'width' of 'sample' is missing"),
        ({"sample": {"channels": 1, "height": 8, "width": 0, "levels": 17}}, "width is 0"),
        ({"sample": {"channels": 1, "height": 8, "width": 8, "levels": 1}}, "levels is 1"),
        ({"sample": None}, "must be JSON objects"),
        (
            {"schedule": {"kind": "linear", "num_train_timesteps": 9, "beta_start": -1, "beta_end": 0.1}},
            "beta_start is -1",
        ),
    ],
)
def test_impossible_json_is_refused_by_name(change, says):
    fields = a_process().to_json() | change
    with pytest.raises(InputError, match=says) as caught:
        Process.from_json(fields, "unet.onnx")
    assert str(caught.value).startswith("unet.onnx: ")


@pytest.mark.parametrize(
    ("part", "field"),
    [
        *(("sample", name) for name in ("channels", "height", "width", "levels")),
        *(("schedule", name) for name in ("kind", "num_train_timesteps", "beta_start", "beta_end")),
        *((None, name) for name in ("sample", "schedule", "prediction_type", "variance_type", "clip_sample")),
    ],
)
def test_a_field_that_is_lost_is_named_and_not_replaced_by_a_default(part, field):
    fields = a_process().to_json()
    del (fields if part is None else fields[part])[field]
    with pytest.raises(InputError, match=field):
        Process.from_json(fields, "unet.onnx")


@pytest.mark.parametrize("field", ["num_train_timesteps", "beta_start", "beta_end"])
def test_nor_is_one_that_says_nothing(field):
    fields = a_process().to_json()
    fields["schedule"][field] = None
    with pytest.raises(InputError, match=field):
        Process.from_json(fields, "unet.onnx")


def test_a_binomial_process_is_pointed_to_its_own_command():
    with pytest.raises(InputError, match="describes a binomial process.*runtime.sample_bits"):
        Process.from_json({"format": 1, "kind": "binomial"})


def test_missing_field_and_junk_are_refused():
    fields = a_process().to_json()
    del fields["variance_type"]
    with pytest.raises(InputError, match="'variance_type' is missing"):
        Process.from_json(fields)
    with pytest.raises(InputError, match="not JSON"):
        Process.from_json_text("{")
    with pytest.raises(InputError, match="found list"):
        Process.from_json_text("[]")


def test_zero_terminal_snr_needs_a_prediction_that_works_there():
    schedule = NoiseSchedule.make("linear").with_zero_terminal_snr()
    for prediction_type in ("epsilon", "score"):
        with pytest.raises(InputError, match="alpha_bar = 0"):
            a_process(schedule=schedule, prediction_type=prediction_type)
    for prediction_type in ("sample", "v_prediction"):
        assert a_process(schedule=schedule, prediction_type=prediction_type).schedule == schedule


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"variance_type": "fixed_small", "prediction_type": "epsilon", "clip_sample": 1.0}),
        ({"variance_type": "fixed_small_log"}, {"variance_type": "fixed_small"}),
        ({"variance_type": "fixed_large", "clip_sample": False}, {"variance_type": "fixed_large", "clip_sample": None}),
        ({"clip_sample_range": 3.0}, {"clip_sample": 3.0}),
        (
            {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
            {"prediction_type": "v_prediction"},
        ),
    ],
)
def test_a_diffusers_config_becomes_a_process(config, expected):
    process = process_from_diffusers(config, UNET)
    for name, value in expected.items():
        assert getattr(process, name) == value


@pytest.mark.parametrize(
    ("config", "unet", "says"),
    [
        ({"variance_type": "fixed_large_log"}, UNET, "fixed_large_log"),
        ({"variance_type": "learned"}, UNET, "'learned'"),
        ({"variance_type": "odd"}, UNET, "'odd'"),
        ({"thresholding": True}, UNET, "thresholding is true"),
        ({"steps_offset": 1}, UNET, "steps_offset is 1"),
        ({"beta_schedule": "cosine"}, UNET, "beta_schedule is 'cosine', expected one of linear, .*laplace"),
        ({}, UNET | {"sample_size": None}, "sample_size is None"),
        ({}, UNET | {"out_channels": 2}, "out_channels is 2, expected 1"),
        ({"variance_type": "learned_range"}, UNET, "out_channels is 1, expected 2"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(config, unet, says):
    with pytest.raises(InputError, match=says):
        process_from_diffusers(config, unet)


@pytest.mark.parametrize("kind", SCHEDULE_KINDS)
def test_diffusers_reads_back_what_we_write(kind):
    from diffusers import DDPMScheduler

    schedule = NoiseSchedule.explicit([0.1, 0.2, 0.3]) if kind == "explicit" else NoiseSchedule.make(kind)
    process = a_process(schedule=schedule, variance_type="fixed_large", clip_sample=2.0, timestep_spacing="trailing")
    config = dict(DDPMScheduler(**process_to_diffusers(process)).config)
    assert process_from_diffusers(config, UNET, levels=17) == process


def test_spacing_stands_in_the_json_only_where_there_is_one():
    assert "timestep_spacing" not in a_process().to_json()
    for spacing in SPACINGS:
        process = a_process(timestep_spacing=spacing)
        fields = process.to_json()
        assert fields["timestep_spacing"] == spacing
        assert fields["format"] == 1  # readers that do not know the field pass over it
        assert Process.from_json(fields) == process
    for odd in ("karras", 3, ["leading"], True):
        with pytest.raises(InputError, match="timestep_spacing is .*, expected null or one of leading, trailing"):
            a_process(timestep_spacing=odd)


def test_spacing_is_what_diffusers_takes():
    for spacing in ("leading", "trailing", "linspace"):
        assert process_from_diffusers({"timestep_spacing": spacing}, UNET).timestep_spacing == spacing
        assert process_to_diffusers(a_process(timestep_spacing=spacing))["timestep_spacing"] == spacing
    assert process_from_diffusers({}, UNET).timestep_spacing == "leading"  # the default of its schedulers
    assert "timestep_spacing" not in process_to_diffusers(a_process(timestep_spacing="logsnr"))


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"trained_betas": [0.1, 0.2, 0.3]}, "trained_betas holds 3 numbers, but num_train_timesteps is 1000"),
        (
            {"trained_betas": [0.1] * 30, "num_train_timesteps": 20},
            "trained_betas holds 30 numbers, but num_train_timesteps is 20",
        ),
        (
            {"trained_betas": ["0.1"], "num_train_timesteps": 1},
            r"trained_betas is \['0.1'\], expected a list of numbers",
        ),
        ({"set_alpha_to_one": False}, "set_alpha_to_one is false, expected true"),
        ({"num_train_timesteps": True}, "num_train_timesteps is True, expected a whole number from 1 to"),
        ({"clip_sample": "false"}, "clip_sample is 'false', expected true or false"),
        ({"variance_type": []}, r"variance_type is \[\], expected a string"),
        ({"beta_start": 10**400}, r"beta_start is 10{20,}\.*…?, expected a number"),
        ({"timestep_spacing": "karras"}, "timestep_spacing is 'karras', expected one of leading, trailing, linspace"),
    ],
)
def test_values_of_the_scheduler_that_mean_something_else(config, found):
    with pytest.raises(InputError, match=f"^scheduler_config.json: {found}"):
        process_from_diffusers(config, UNET)
