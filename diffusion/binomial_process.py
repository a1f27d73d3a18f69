"""What must be known of a trained binomial network to sample from it: the shape of its data and the schedule.

The JSON object stands in an ONNX file's metadata under `ddpm-rt`, as that of a Gaussian process does; its
`"kind"` tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion.errors import InputError
from diffusion.json_text import parse_json
from diffusion.noise_schedule import NoiseSchedule
from diffusion.number_checks import is_whole
from diffusion.process import PROCESS_FORMAT, SampleShape

BINOMIAL_KIND = "binomial"
LOGIT_PREDICTION = "x_start_logit"
_LEVELS = 2


@dataclass(frozen=True)
class BinomialProcess:
    """A trained binomial process: everything the chain needs but the network.

    Attributes:
        sample: the shape of one sample; `levels` is 2.
        schedule: the noise schedule; it must end at ᾱ = 0 or near, where x_T is fair coins.
        checkpoint_sha256: of the weights the network came from, if known.

    Raises:
        InputError: data that are not binary.
    """

    sample: SampleShape
    schedule: NoiseSchedule
    checkpoint_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.sample.levels != _LEVELS:
            raise InputError(f"binomial process: levels is {self.sample.levels}, expected 2: the data are bits")

    @classmethod
    def from_json(cls, fields: object, source: str = "binomial process") -> BinomialProcess:
        """The inverse of `to_json`.

        Args:
            fields: the parsed JSON object.
            source: what to call the object in an error: a file's name.

        Raises:
            InputError: another kind of process, a format this version does not know, a missing or impossible field.
        """
        if not isinstance(fields, Mapping):
            raise InputError(f"{source}: found {type(fields).__name__}, expected the JSON object of a process")
        if fields.get("kind") != BINOMIAL_KIND:
            raise InputError(
                f"{source}: describes no binomial process (kind is {fields.get('kind')!r}); "
                "sample from a Gaussian one with `python -m runtime.sample`"
            )
        if not is_whole(fields.get("format")) or fields["format"] != PROCESS_FORMAT:
            raise InputError(
                f"{source}: process format is {fields.get('format')!r}, this version reads {PROCESS_FORMAT}; "
                "export again with this version"
            )
        if fields.get("prediction_type") != LOGIT_PREDICTION:
            raise InputError(
                f"{source}: prediction_type is {fields.get('prediction_type')!r}, expected {LOGIT_PREDICTION!r}; "
                "export again"
            )
        sample, schedule = fields.get("sample"), fields.get("schedule")
        if not isinstance(sample, Mapping) or not isinstance(schedule, Mapping):
            raise InputError(f"{source}: 'sample' and 'schedule' must be JSON objects; export again")
        try:
            shape = SampleShape(*(sample.get(name, 0) for name in ("channels", "height", "width", "levels")))
            return cls(shape, NoiseSchedule.from_json(schedule), fields.get("checkpoint_sha256"))
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    @classmethod
    def from_json_text(cls, text: str, source: str = "binomial process") -> BinomialProcess:
        """As `from_json`, from text. Raises InputError if the text is not JSON."""
        try:
            fields = parse_json(text)
        except InputError as error:
            raise InputError(f"{source}: {error}; export again") from None
        return cls.from_json(fields, source)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of this process."""
        channels, height, width = self.sample.chw
        return {
            "format": PROCESS_FORMAT,
            "kind": BINOMIAL_KIND,
            "sample": {"channels": channels, "height": height, "width": width, "levels": _LEVELS},
            "schedule": self.schedule.to_json(),
            "prediction_type": LOGIT_PREDICTION,
            "checkpoint_sha256": self.checkpoint_sha256,
        }
