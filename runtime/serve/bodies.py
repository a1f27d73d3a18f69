"""What goes in and out over HTTP: the fields of a request, and images as PNG, npz or JSON."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from diffusion.samplers import DEFAULT_SAMPLER
from runtime.images import draw_grid, picture, quantize
from runtime.serve.image_request import ImageRequest
from runtime.serve.ticket import Preview, Ticket

_WORD = 2**64 - 1
_LONG = 4096  # entries of a list


class ImagesBody(BaseModel):
    """A number of images. Equal bodies give equal images, bit for bit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    num: Annotated[int, Field(ge=1, le=2**20, description="how many; the service has a limit of its own")] = 1
    seed: Annotated[int, Field(ge=0, le=_WORD)] = 0
    start: Annotated[int, Field(ge=0, le=_WORD, description="index of the first sample")] = 0
    sampler: Annotated[str, Field(max_length=255, description="one of the samplers of /v1/model")] = DEFAULT_SAMPLER
    steps: Annotated[int | None, Field(ge=1, le=2**20, description="network calls; null for all of training")] = None
    spacing: Annotated[str | None, Field(max_length=32, description="how the steps are chosen")] = None
    timesteps: Annotated[list[int] | None, Field(max_length=_LONG, description="instead of steps, descending")] = None
    eta: Annotated[float | None, Field(ge=0, le=1, description="noise of ddim")] = None
    use_clipped_model_output: bool | None = None
    classes: Annotated[
        list[int | None] | Literal["all"] | None,
        Field(description="of a conditional network: sample i takes entry i mod n; null for no class"),
    ] = None
    guidance: Annotated[float | list[float] | None, Field(description="scale of classifier-free guidance")] = None
    conditions: Annotated[dict[str, Any], Field(description="what else the network takes, by name")] = {}
    deadline_s: Annotated[float | None, Field(gt=0, le=86400, description="seconds after which nobody wants them")] = (
        None
    )
    preview_every: Annotated[
        int, Field(ge=0, le=2**20, description="steps between two previews, of text/event-stream; 0 for none")
    ] = 0

    def request(self, with_previews: bool) -> ImageRequest:
        """The request; previews only where they are sent. Raises InputError as `ImageRequest`."""
        fields = dict(self)
        fields["timesteps"] = None if self.timesteps is None else tuple(self.timesteps)
        fields["preview_every"] = self.preview_every if with_previews else 0
        return ImageRequest(**fields)


def first_problem(errors: Sequence[Mapping[str, Any]]) -> str:
    """The first of pydantic's errors of a body, in one line: where, and what."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return f"{place}: {first['msg']}"


class Problem(BaseModel):
    """Why there are no images."""

    detail: str


class ImagesAnswer(BaseModel):
    """Images that are done."""

    images: Annotated[list[str], Field(description="PNG in base64, in the order of their indices")]
    request: Annotated[dict[str, Any], Field(description="what they were made from; it reproduces them")]
    engine: Annotated[dict[str, str], Field(description="name, precision and sha256 of the network")]


def png(image: np.ndarray | Image.Image) -> bytes:
    """One picture, uint8 [H, W, 1 or 3] or a PIL image, as a file."""
    buffer = io.BytesIO()
    (picture(image) if isinstance(image, np.ndarray) else image).save(buffer, "PNG")
    return buffer.getvalue()


def png_base64(image: np.ndarray) -> str:
    """One picture, uint8 [H, W, 1 or 3], as text."""
    return base64.b64encode(png(image)).decode("ascii")


def images_png(ticket: Ticket) -> bytes:
    """One image as it is; several as a grid."""
    images = quantize(ticket.x)
    return png(images[0] if len(images) == 1 else draw_grid(images))


def images_npz(ticket: Ticket) -> bytes:
    """`arr_0`, uint8 [N, H, W, C], as `runtime.sample --format npz` writes it."""
    buffer = io.BytesIO()
    np.savez(buffer, quantize(ticket.x))
    return buffer.getvalue()


def images_answer(ticket: Ticket, body: ImagesBody, engine: dict[str, str]) -> ImagesAnswer:
    """The JSON answer."""
    unsaid = {"deadline_s", "preview_every"} | ({"conditions"} if not body.conditions else set())
    request = body.model_dump(exclude=unsaid, exclude_none=True)  # defaults too: another version may have others
    return ImagesAnswer(images=[png_base64(image) for image in quantize(ticket.x)], request=request, engine=engine)


def preview_fields(preview: Preview) -> list[dict[str, Any]]:
    """The `previews` of a progress event."""
    images = quantize(preview.x_start)
    return [
        {"place": place, "steps_done": done, "png": png_base64(image)}
        for place, done, image in zip(preview.places, preview.rows_done, images, strict=True)
    ]
