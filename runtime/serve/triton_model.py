"""What Triton Inference Server's Python backend runs: the slots, whose responses come as a request proceeds.

A request has one input, REQUEST: the JSON of `POST /v1/images`. Its responses are decoupled: with `preview_every`, new
previews of x_start and how far it has come; at the end its images. Images are those of `runtime.sample`, bit for bit.
`python -m export.to_triton` writes the repository that this model is part of.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # Triton brings it
from pydantic import ValidationError

from diffusion.errors import InputError
from runtime.engines.opening import EngineOptions, open_engine
from runtime.images import quantize
from runtime.serve.bodies import ImagesBody, first_problem
from runtime.serve.image_request import RequestTables
from runtime.serve.slots import Slots
from runtime.serve.ticket import FINAL, Preview, State, Ticket
from runtime.serve.worker import BusyError, Limits, StoppingError, Worker

_log = logging.getLogger("runtime.serve")

_LOOK_S = 0.25  # how often it is asked whether the client is still there


@dataclass(eq=False)
class _Answer:
    """A request that was taken, and where its responses go."""

    sender: Any
    ticket: Ticket | None = None
    preview: Preview | None = None
    is_done: bool = False


class TritonPythonModel:
    """An engine and its slots, in Triton's interface."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine that the configuration names. What is wrong with it is Triton's error of this model.

        Args:
            args: of Triton: the configuration, the folder of the model and its version.
        """
        parameters = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        folder = Path(args["model_repository"]) / args["model_version"]
        threads = int(parameters["threads"])
        engine = open_engine(folder / parameters["engine"], EngineOptions(parameters["device"], threads))
        limits = Limits(int(parameters["max_images"]), int(parameters["max_waiting"]), float(parameters["deadline_s"]))
        slots = Slots(engine, int(parameters["slots"]), threads)
        self._worker = Worker(slots, RequestTables(engine.process, engine.precision), limits)
        sample = engine.process.sample
        self._no_images = np.empty((0, sample.height, sample.width, sample.channels), np.uint8)
        self._changes: queue.SimpleQueue[_Answer | None] = queue.SimpleQueue()
        self._sending = threading.Thread(target=self._send_all, name="responses", daemon=True)
        self._worker.start()
        self._sending.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Take requests; their responses come later."""
        for request in requests:
            answer = _Answer(request.get_response_sender())
            try:
                given = pb_utils.get_input_tensor_by_name(request, "REQUEST").as_numpy().reshape(-1)
                if len(given) != 1:
                    raise InputError(f"REQUEST has {len(given)} elements, expected one JSON text")
                body = ImagesBody.model_validate_json(given[0])
                answer.ticket = self._worker.submit(
                    body.request(with_previews=True),
                    partial(self._changes.put, answer),
                    is_watched=bool(body.preview_every),
                )
            except ValidationError as error:
                self._fail(answer, first_problem(error.errors()), pb_utils.TritonError.INVALID_ARG)
            except InputError as error:
                self._fail(answer, str(error), pb_utils.TritonError.INVALID_ARG)
            except (BusyError, StoppingError) as error:
                self._fail(answer, str(error), pb_utils.TritonError.UNAVAILABLE)
            else:
                self._changes.put(answer)  # it may have moved before the ticket was known

    def finalize(self) -> None:
        """End. Triton has waited for the requests that it sent."""
        self._worker.stop()
        self._changes.put(None)
        self._sending.join()

    def _send_all(self) -> None:
        going: set[_Answer] = set()
        look_at = time.monotonic() + _LOOK_S
        while True:
            try:
                answer = self._changes.get(timeout=max(0.0, look_at - time.monotonic()))
            except queue.Empty:
                pass
            else:
                if answer is None:
                    return
                if answer.ticket is not None and not answer.is_done:
                    going.add(answer)
                    self._try_to_send(answer, answer.ticket)
            if time.monotonic() >= look_at:
                going = {each for each in going if not each.is_done}
                for each in going:
                    if each.ticket is not None and each.sender.is_cancelled():
                        self._worker.cancel(each.ticket)
                look_at = time.monotonic() + _LOOK_S

    def _try_to_send(self, answer: _Answer, ticket: Ticket) -> None:
        try:
            self._send(answer, ticket)
        except Exception:  # of Triton, whose client may be gone; the others go on
            _log.exception("a response could not be sent")
            answer.is_done = True
            self._worker.cancel(ticket)

    def _send(self, answer: _Answer, ticket: Ticket) -> None:
        state, newest = ticket.state, ticket.preview
        if state in FINAL:
            if ticket.problem:
                gone = state in (State.CANCELLED, State.EXPIRED)
                code = pb_utils.TritonError.CANCELLED if gone else pb_utils.TritonError.INTERNAL
                self._fail(answer, ticket.problem, code)
                return
            answer.is_done = True
            response = self._response(ticket, ticket.rows, images=quantize(ticket.x))
            answer.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        elif newest is not answer.preview:
            answer.preview = newest
            answer.sender.send(self._response(ticket, ticket.rows_done, newest))

    def _response(
        self, ticket: Ticket, rows: int, preview: Preview | None = None, images: np.ndarray | None = None
    ) -> Any:
        places: Sequence[int] = [] if preview is None else preview.places
        tensors = {
            "IMAGES": self._no_images if images is None else images,
            "STEPS_DONE": np.array([rows], np.int64),
            "STEPS": np.array([ticket.rows], np.int64),
            "PREVIEWS": self._no_images if preview is None else quantize(preview.x_start),
            "PREVIEW_PLACES": np.array(places, np.int64),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in tensors.items()])

    def _fail(self, answer: _Answer, message: str, code: int) -> None:
        answer.is_done = True
        response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
        answer.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
