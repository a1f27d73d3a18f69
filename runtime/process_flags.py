"""What flags say of a network whose file does not say it itself, and what a user may choose differently."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace

from diffusion.errors import InputError
from diffusion.noise_schedule import SCHEDULE_KINDS, NoiseSchedule
from diffusion.number_checks import is_finite_number, real_number, shown, whole_number
from diffusion.process import PREDICTION_TYPES, VARIANCE_TYPES, Process, SampleShape


@dataclass(frozen=True)
class ProcessFlags:
    """The process as the command line tells it; None where it says nothing.

    Attributes:
        beta_schedule, beta_start, beta_end, num_train_timesteps: of the noise schedule.
        prediction_type, variance_type: as in `diffusion.process.Process`.
        clip_sample: a bound, or "none".
        channels, height, width: of one sample, where an ONNX file leaves them open or might mean another order.
        output_name: which output of an ONNX file is the prediction, where it has several.

    Raises:
        InputError: an unknown name, or what is no number; numbers of any type are taken by their value.
    """

    beta_schedule: str | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    num_train_timesteps: int | None = None
    prediction_type: str | None = None
    variance_type: str | None = None
    clip_sample: float | str | None = None
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    output_name: str | None = None

    def __post_init__(self) -> None:
        choices = {
            "beta_schedule": SCHEDULE_KINDS,
            "prediction_type": PREDICTION_TYPES,
            "variance_type": VARIANCE_TYPES,
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise InputError(f"`{name}` is {shown(value)}, expected one of {', '.join(known)}")
        for name in ("beta_start", "beta_end", "num_train_timesteps"):
            value = getattr(self, name)
            if value is not None:
                check = whole_number if name == "num_train_timesteps" else real_number
                object.__setattr__(self, name, check(value, f"`{name}`"))
        for name in ("channels", "height", "width"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(value, f"`{name}`", 1))
        clip = self.clip_sample
        if clip is not None and clip != "none":
            if not is_finite_number(clip) or not clip > 0:
                raise InputError(f"`clip_sample` is {shown(clip)}, expected a positive number or none")
            object.__setattr__(self, "clip_sample", float(clip))

    @property
    def clip(self) -> float | None:
        """The bound that was asked for; None for none."""
        return None if self.clip_sample is None or self.clip_sample == "none" else float(self.clip_sample)

    def process(
        self,
        sample: SampleShape,
        source: str,
        lacks: str = "no metadata 'ddpm-rt'",
        remedy: str = "export again with `python -m export.to_onnx`",
    ) -> Process:
        """The process of a network whose file says nothing of it.

        Args:
            sample: the shape of one sample.
            source: the file.
            lacks: what would have described the process.
            remedy: what else to do than to give the flags.

        Raises:
            InputError: what has no default is not given.
        """
        needed = ("beta_schedule", "prediction_type", "variance_type", "clip_sample")
        missing = [f"`{name}`" for name in needed if getattr(self, name) is None]
        if missing:
            raise InputError(
                f"{source}: has {lacks} that describes its process, and {', '.join(missing)} "
                f"is not given; give them, or {remedy}"
            )
        schedule = NoiseSchedule.make(
            str(self.beta_schedule),
            1000 if self.num_train_timesteps is None else self.num_train_timesteps,
            self.beta_start,
            self.beta_end,
        )
        return Process(sample, schedule, str(self.prediction_type), str(self.variance_type), self.clip)

    def applied_to(self, process: Process, source: str) -> Process:
        """A process that its file describes, with the variance and the clip that the user prefers.

        Raises:
            InputError: a field contradicts what the network was trained on.
        """
        schedule = process.schedule
        facts = {
            "beta_schedule": schedule.kind,
            "beta_start": schedule.beta_start,
            "beta_end": schedule.beta_end,
            "num_train_timesteps": schedule.num_train_timesteps,
            "prediction_type": process.prediction_type,
            "channels": process.sample.channels,
            "height": process.sample.height,
            "width": process.sample.width,
        }
        for name, fact in facts.items():
            flag = getattr(self, name)
            if flag is not None and flag != fact:
                raise InputError(f"`{name}` is {flag}, but {source} was trained with {fact}; leave it out")
        if self.variance_type is not None and self.variance_type != process.variance_type:
            if "learned_range" in (self.variance_type, process.variance_type):
                raise InputError(
                    f"`variance_type` is {self.variance_type}, but {source} was trained with {process.variance_type}; "
                    "only fixed_small and fixed_large can stand for each other"
                )
            process = replace(process, variance_type=self.variance_type)
        if self.clip_sample is not None:
            process = replace(process, clip_sample=self.clip)
        return process


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `ProcessFlags`, in a group of their own."""
    group = parser.add_argument_group(
        "process",
        "for a network whose file does not describe it; the variance and the clip may be chosen for any",
    )
    group.add_argument("--beta-schedule", choices=[kind for kind in SCHEDULE_KINDS if kind != "explicit"])
    group.add_argument("--beta-start", type=float, metavar="B")
    group.add_argument("--beta-end", type=float, metavar="B")
    group.add_argument("--num-train-timesteps", type=int, metavar="T", help="default 1000")
    group.add_argument("--prediction-type", choices=PREDICTION_TYPES)
    group.add_argument("--variance-type", choices=VARIANCE_TYPES)
    group.add_argument("--clip-sample", type=_clip, metavar="C|none", help="bound for |x_start|")
    for name in ("channels", "height", "width"):
        group.add_argument(f"--{name}", type=_size, metavar="N", help="of an ONNX file that leaves it open")
    group.add_argument("--output-name", metavar="NAME", help="the prediction, of an ONNX file with several outputs")


def process_flags(args: argparse.Namespace) -> ProcessFlags:
    """What `add_process_flags` parsed."""
    return ProcessFlags(**{field.name: getattr(args, field.name) for field in fields(ProcessFlags)})


def _clip(text: str) -> float | str:
    if text == "none":
        return text
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a positive number or none")
    return value


def _size(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least 1")
    return int(text)
