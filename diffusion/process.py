"""What must be known of a trained network to sample from it: shape, schedule, what it predicts, what it clips.

The same JSON object stands in an ONNX file's metadata under `ddpm-rt` and in every engine's sidecar
under `"process"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffusion.conditions import FLOAT32, GUIDANCE, MAX_ELEMENTS, Condition, check_conditions
from diffusion.errors import InputError, in_file
from diffusion.json_text import parse_json
from diffusion.noise_schedule import NoiseSchedule
from diffusion.number_checks import is_finite_number, is_whole, shown, whole_number
from diffusion.spacing import SPACINGS

PROCESS_FORMAT = 1
CONDITIONAL_FORMAT = 2
"""Of a process that has conditions: a reader that knows none must not take its network for an unconditional one."""

METADATA_KEY = "ddpm-rt"
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "score")
VARIANCE_TYPES = ("fixed_small", "fixed_large", "learned_range")
# Predictions from which x_start cannot be recovered where nothing of the data is left (ᾱ = 0).
_NEED_SIGNAL = ("epsilon", "score")
# A bound that is not named is not "none", which is written null.
_REQUIRED = ("format", "sample", "schedule", "prediction_type", "variance_type", "clip_sample")
_OPTIONAL = ("checkpoint_sha256", "timestep_spacing", "conditions")
_OF_SAMPLE = ("channels", "height", "width", "levels")


def _word(value: object) -> str:
    return value if isinstance(value, str) and value.isidentifier() else shown(value)


@dataclass(frozen=True)
class SampleShape:
    """One sample: channels, height, width, and how many gray levels the data had (the likelihood's bins)."""

    channels: int
    height: int
    width: int
    levels: int = 256

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width", "levels"):
            lowest = 2 if name == "levels" else 1
            value = whole_number(getattr(self, name), f"sample shape: {name}", lowest, MAX_ELEMENTS)
            object.__setattr__(self, name, value)
        if self.num_elements > MAX_ELEMENTS:
            raise InputError(
                f"sample shape: {self.channels}×{self.height}×{self.width} are {self.num_elements} numbers, expected "
                f"at most {MAX_ELEMENTS}"
            )

    @property
    def chw(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def num_elements(self) -> int:
        """C · H · W."""
        return self.channels * self.height * self.width


@dataclass(frozen=True)
class Process:
    """A trained diffusion process: everything the sampler needs but the network itself.

    Attributes:
        sample: the shape of one sample.
        schedule: the noise schedule that the network was trained on.
        prediction_type: what the network's first C channels are, one of `PREDICTION_TYPES`.
        variance_type: `fixed_small` (β̃), `fixed_large` (β) or `learned_range` (the network has 2C channels).
        clip_sample: bound for |x_start|, or None for no clipping.
        checkpoint_sha256: of the weights the network came from, if known.
        timestep_spacing: how fewer timesteps than T are chosen unless a user says it, one of
            `diffusion.spacing.SPACINGS`; None where the checkpoint does not say.
        conditions: what else the network takes, in the order in which it is given; empty for an unconditional one.

    Raises:
        InputError: an unknown type or spacing, a bound that is not positive, a schedule that ends at ᾱ = 0 with a
            prediction that cannot recover x_start there, or conditions that do not go together.
    """

    sample: SampleShape
    schedule: NoiseSchedule
    prediction_type: str = "epsilon"
    variance_type: str = "fixed_small"
    clip_sample: float | None = 1.0
    checkpoint_sha256: str | None = None
    timestep_spacing: str | None = None
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", check_conditions(self.conditions))
        if self.timestep_spacing is not None and self.timestep_spacing not in SPACINGS:
            raise InputError(
                f"process: timestep_spacing is {shown(self.timestep_spacing)}, expected null or one of "
                f"{', '.join(SPACINGS)}"
            )
        if self.prediction_type not in PREDICTION_TYPES:
            raise InputError(
                f"process: prediction_type is {shown(self.prediction_type)}, expected one of "
                f"{', '.join(PREDICTION_TYPES)}"
            )
        if self.variance_type not in VARIANCE_TYPES:
            raise InputError(
                f"process: variance_type is {shown(self.variance_type)}, expected one of {', '.join(VARIANCE_TYPES)}"
            )
        clip = self.clip_sample
        if clip is not None:
            if not is_finite_number(clip) or not clip > 0:
                raise InputError(f"process: clip_sample is {shown(clip)}, expected a positive number or null")
            object.__setattr__(self, "clip_sample", float(clip))
        if self.checkpoint_sha256 is not None and not isinstance(self.checkpoint_sha256, str):
            raise InputError(f"process: checkpoint_sha256 is {shown(self.checkpoint_sha256)}, expected a text or null")
        if self.schedule.alpha_bar[-1] == 0.0 and self.prediction_type in _NEED_SIGNAL:
            raise InputError(
                f"process: the schedule ends at alpha_bar = 0, where {self.prediction_type} says nothing "
                "about x_start; expected prediction_type sample or v_prediction"
            )

    @property
    def prediction_channels(self) -> int:
        """Channels of the network's output: C, or 2C with `learned_range`."""
        return self.sample.channels * (2 if self.variance_type == "learned_range" else 1)

    @property
    def label(self) -> Condition | None:
        """The class label that the network takes; None where it takes none."""
        return next((condition for condition in self.conditions if condition.is_label), None)

    @property
    def is_guided(self) -> bool:
        """Whether the network takes a guidance scale."""
        return any(condition.name == GUIDANCE for condition in self.conditions)

    def with_guidance(self) -> Process:
        """The same with a guidance scale, 1 unless it is said, where there is a null class to be guided away from."""
        if self.is_guided or self.label is None or self.label.null is None:
            return self
        return replace(self, conditions=(*self.conditions, Condition(GUIDANCE, FLOAT32, default=1.0)))

    def without_guidance(self) -> Process:
        """The process of the network itself, which guidance calls twice."""
        kept = tuple(condition for condition in self.conditions if condition.name != GUIDANCE)
        return replace(self, conditions=kept)

    @classmethod
    def from_json(cls, fields: object, source: str = "process") -> Process:
        """The inverse of `to_json`.

        Args:
            fields: the parsed JSON object.
            source: what to call the object in an error: a file's name.

        Raises:
            InputError: a format this version does not know, a missing, an unknown or an impossible field.
        """
        if not isinstance(fields, Mapping):
            found = type(fields).__name__
            raise InputError(f"{source}: found {found}, expected the JSON object of a process; export again")
        if not is_whole(fields.get("format")) or fields["format"] not in (PROCESS_FORMAT, CONDITIONAL_FORMAT):
            raise InputError(
                f"{source}: process format is {shown(fields.get('format'))}, this version reads {PROCESS_FORMAT} and "
                f"{CONDITIONAL_FORMAT}; export again with this version, or install the version that wrote it"
            )
        conditions = fields.get("conditions", [])
        if not isinstance(conditions, list) or bool(conditions) != (fields["format"] == CONDITIONAL_FORMAT):
            raise InputError(
                f"{source}: process format is {fields['format']} and conditions are {shown(conditions)}, expected a "
                f"list of conditions in format {CONDITIONAL_FORMAT} and none in format {PROCESS_FORMAT}; export again"
            )
        if "kind" in fields:
            raise InputError(
                f"{source}: describes a {_word(fields['kind'])} process, expected a Gaussian one; "
                "a binomial network is sampled with `python -m runtime.sample_bits`"
            )
        _check_names(fields, _REQUIRED, _OPTIONAL, source)
        sample, schedule = sample_and_schedule(fields, source)
        try:
            return cls(
                sample=sample,
                schedule=schedule,
                prediction_type=fields["prediction_type"],
                variance_type=fields["variance_type"],
                clip_sample=fields["clip_sample"],
                checkpoint_sha256=fields.get("checkpoint_sha256"),
                timestep_spacing=fields.get("timestep_spacing"),
                conditions=tuple(map(Condition.from_json, conditions)),
            )
        except InputError as error:
            raise in_file(source, error, "export again") from None

    @classmethod
    def from_json_text(cls, text: str, source: str = "process") -> Process:
        """As `from_json`, from text. Raises InputError if the text is not JSON."""
        return cls.from_json(parse_description(text, source), source)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of this process.

        `timestep_spacing` stands in it only where there is one, as files from before there was this field have none.
        """
        shape = self.sample
        described: dict[str, Any] = {
            "format": CONDITIONAL_FORMAT if self.conditions else PROCESS_FORMAT,
            "sample": {
                "channels": shape.channels,
                "height": shape.height,
                "width": shape.width,
                "levels": shape.levels,
            },
            "schedule": self.schedule.to_json(),
            "prediction_type": self.prediction_type,
            "variance_type": self.variance_type,
            "clip_sample": self.clip_sample,
            "checkpoint_sha256": self.checkpoint_sha256,
        }
        if self.timestep_spacing is not None:
            described["timestep_spacing"] = self.timestep_spacing
        if self.conditions:
            described["conditions"] = [condition.to_json() for condition in self.conditions]
        return described


def sample_and_schedule(fields: Mapping[str, Any], source: str) -> tuple[SampleShape, NoiseSchedule]:
    """The two objects that the JSON of every kind of process holds.

    Raises:
        InputError: a missing or an impossible field.
    """
    sample, schedule = fields.get("sample"), fields.get("schedule")
    if not isinstance(sample, Mapping) or not isinstance(schedule, Mapping):
        raise InputError(f"{source}: 'sample' and 'schedule' must be JSON objects; export again")
    _check_names(sample, _OF_SAMPLE, (), source, " of 'sample'")
    try:
        return SampleShape(*(sample[name] for name in _OF_SAMPLE)), NoiseSchedule.from_json(schedule)
    except InputError as error:
        raise in_file(source, error, "export again") from None


def parse_description(text: str, source: str) -> Any:
    """As `parse_json`; what is not JSON is named and is to be exported again."""
    try:
        return parse_json(text)
    except InputError as error:
        raise in_file(source, error, "export again") from None


def _check_names(
    fields: Mapping[str, Any], required: tuple[str, ...], optional: tuple[str, ...], source: str, of: str = ""
) -> None:
    missing = [name for name in required if name not in fields]
    if missing:
        raise InputError(f"{source}: the field {missing[0]!r}{of} is missing; export again")
    unknown = [name for name in fields if name not in (*required, *optional)]
    if unknown:
        raise InputError(
            f"{source}: the field {shown(unknown[0])}{of} is not known to this version, expected "
            f"{', '.join((*required, *optional))}; export again, or install the version that wrote it"
        )
