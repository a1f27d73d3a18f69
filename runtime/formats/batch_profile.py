"""Which batches a TensorRT plan takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from diffusion.errors import InputError
from runtime.formats.fields import Fields

_MAX_BATCH = 2**31 - 1


@dataclass(frozen=True)
class BatchProfile:
    """The batches that one optimization profile takes.

    Attributes:
        min, max: both included.
        opt: the batch that kernels are chosen for.

    Raises:
        InputError: not in that order, or out of range.
    """

    min: int = 1
    opt: int = 8
    max: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= _MAX_BATCH:
            raise InputError(
                f"batch profile is {self.min},{self.opt},{self.max}, expected min ≤ opt ≤ max from 1 to {_MAX_BATCH}"
            )

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min} to {self.max}"

    def to_json(self) -> dict[str, int]:
        """For a sidecar."""
        return asdict(self)

    @classmethod
    def list_from_json(cls, fields: Fields) -> tuple[BatchProfile, ...]:
        """The field `batch_profiles`. Raises InputError if one is not what `to_json` writes."""
        profiles = []
        for entry in fields.get("batch_profiles", list):
            sizes = [entry.get(name) for name in ("min", "opt", "max")] if isinstance(entry, dict) else []
            whole = [size for size in sizes if type(size) is int]
            try:
                if len(whole) != 3:
                    raise InputError("other fields")
                profiles.append(cls(*whole))
            except InputError:
                raise fields.wrong("batch_profiles", entry, "1 ≤ min ≤ opt ≤ max") from None
        return tuple(profiles)
