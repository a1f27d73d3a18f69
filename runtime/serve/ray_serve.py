"""The service on several machines: Ray Serve starts replicas as they are needed, each with an engine of its own.

`serve run runtime.serve.ray_serve:build engine=/models/unet.onnx`, or a file such as docs/deploy/ray-serve.yaml. A
request is one replica's from beginning to end, and its images do not depend on which: equal requests give equal images.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve

from diffusion.errors import InputError
from runtime.engines.opening import EngineOptions, open_engine
from runtime.serve.app import make_app
from runtime.serve.guard import TOKEN_VARIABLE, read_token
from runtime.serve.image_request import RequestTables
from runtime.serve.metrics import Metrics
from runtime.serve.slots import Slots
from runtime.serve.worker import Limits, Worker

_LIMITS = Limits()
_DRAIN_MARGIN_S = 30.0

_log = logging.getLogger("ray.serve")


class Settings(BaseModel):
    """The arguments of the application, as `key=value` behind `serve run` or as `args` in a file."""

    model_config = ConfigDict(extra="forbid")

    engine: Annotated[Path, Field(description="a file or folder that every machine has, under its absolute name")]
    slots: Annotated[int, Field(ge=1, description="samples of every network call")] = 8
    backend: str = "auto"
    tables: Annotated[list[Path], Field(description="of tables' files, likewise, as --table of `ddpm-rt serve`")] = []
    device: str | None = None
    token_file: Annotated[Path | None, Field(description="on every machine; else DDPM_RT_TOKEN there")] = None
    without_token: Annotated[bool, Field(description="serve whoever says that it is on this machine")] = False
    max_images: Annotated[int, Field(ge=1)] = _LIMITS.images
    max_waiting: Annotated[int, Field(ge=0, description="samples without a slot, of each replica")] = _LIMITS.waiting
    deadline: Annotated[float, Field(gt=0, le=86400, description="seconds of a request")] = _LIMITS.deadline_s
    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    cpus: Annotated[int, Field(ge=1, description="of a replica")] = 1
    gpus: Annotated[float, Field(ge=0, description="of a replica")] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, expected at least min_replicas, {self.min_replicas}"
            )
        if self.without_token and self.token_file is not None:
            raise ValueError("token_file and without_token were both given; give one of them")
        for name, path in (("engine", self.engine), *(("tables", table) for table in self.tables)):
            if not path.is_absolute():
                raise ValueError(f"{name} is {path}, expected an absolute path: replicas have folders of their own")
        return self


class Replica:
    """One engine, its slots and its endpoints.

    Raises:
        InputError: as the start of `python -m runtime.serve`, or where a token must be and there is none; Ray tells it
            in `serve status`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        given = Settings(**settings)
        token = None if given.without_token else read_token(given.token_file)
        if token is None and not given.without_token:
            raise InputError(
                f"no token: Ray's proxy may be reached by others; give token_file, set {TOKEN_VARIABLE}, or say "
                "without_token where the proxy listens to this machine alone"
            )
        engine = open_engine(given.engine, EngineOptions(given.device, given.cpus, backend=given.backend))
        self._metrics = Metrics()
        self._worker = Worker(
            Slots(engine, given.slots, given.cpus),
            RequestTables(engine.process, engine.precision, files=given.tables),
            Limits(given.max_images, given.max_waiting, given.deadline),
            self._metrics,
        )
        self._metrics.watch(self._worker)
        self._app = make_app(engine, self._worker, self._metrics, token)
        self._worker.start()
        _log.info("%s: %s, %d slots, process %d", given.engine, engine.name, given.slots, os.getpid())

    def __serve_build_asgi_app__(self) -> Any:
        """What Ray serves."""
        return self._app

    def check_health(self) -> None:
        """Asked by Ray, which replaces a replica that raises."""
        if not self._worker.is_healthy:
            raise RuntimeError(self._worker.broken or "the thread of the slots has ended")

    def __del__(self) -> None:
        """Ray has waited for the requests that this replica had."""
        if hasattr(self, "_worker"):
            self._worker.stop()


def build(settings: Settings) -> serve.Application:
    """The application.

    Args:
        settings: of every replica. Ray starts another one where more requests than slots run on each of those that
            there are, up to `max_replicas`.
    """
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="ddpm-rt",
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        # Fairness, limits and 429 are the replica's own, so Ray holds nothing back.
        max_ongoing_requests=settings.slots + settings.max_waiting + 1,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "initial_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.slots,
        },
        graceful_shutdown_timeout_s=settings.deadline + _DRAIN_MARGIN_S,
    )
    return deployment.bind(settings.model_dump(mode="json"))
