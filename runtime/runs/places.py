"""Where a run is: a folder, or a URL of a store of objects."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from diffusion.errors import InputError
from diffusion.number_checks import shown

# Of these it is known that an object appears whole. Others, such as sftp, show a file while it grows.
_SCHEMES = ("s3", "s3a", "gs", "gcs", "memory")
_FILE = "file://"
_URL = re.compile(r"([a-z0-9]+)://([^/\s]+(?:/[^/\s]+)*)/*")
_NO_NAME = re.compile(r"[*?\[\]#%\\]|::|(?:^|/)\.{1,2}(?:/|$)")  # patterns, queries, chains of stores, `..`


@dataclass(frozen=True)
class ObjectUrl:
    """The URL of an object, or of those that begin with it and a slash."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> ObjectUrl:
        return ObjectUrl(f"{self.url}/{name}")

    @property
    def scheme(self) -> str:
        """Such as `s3`."""
        return self.url.partition("://")[0]

    @property
    def is_bucket(self) -> bool:
        """Whether it names no object in one."""
        return self.url.count("/") < 3

    @property
    def parent(self) -> ObjectUrl:
        """Without its last name."""
        return ObjectUrl(self.url.rpartition("/")[0])

    @property
    def name(self) -> str:
        """Its last name."""
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Of its last name."""
        return Path(self.name).suffix


Place = Path | ObjectUrl


def parse_place(text: str) -> Place:
    """The place that a user names. Raises InputError for a URL that is not one of a store we can write."""
    if "://" not in text:
        return Path(text)
    if text.startswith(_FILE + "/"):
        return Path(text.removeprefix(_FILE))
    match = _URL.fullmatch(text)
    if match is None or match[1] not in _SCHEMES or _NO_NAME.search(match[2]):
        raise InputError(
            f"found {shown(text)}, expected a folder, or a URL such as s3://bucket/run, gs://bucket/run or "
            "file:///folder; mount another store, or copy a folder to it afterwards"
        )
    return ObjectUrl(f"{match[1]}://{match[2]}")


def place_argument(text: str) -> Place:
    """As `parse_place`, for argparse."""
    try:
        return parse_place(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
