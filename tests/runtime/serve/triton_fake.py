"""The part of `triton_python_backend_utils` that the model uses, without Triton: as its documentation describes it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonError(Exception):
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = UNKNOWN) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Tensor:
    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None


class Sender:
    """Where the responses of a request go.

    Attributes:
        responses: name → array of each; or an error.
        ended: set by the last one, after which nothing may come.
    """

    def __init__(self) -> None:
        self.responses: list[dict[str, np.ndarray] | TritonError] = []
        self.ended, self.is_gone = threading.Event(), False

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        assert not self.ended.is_set()
        tensors = {tensor.name: tensor.array for tensor in response.output_tensors}
        self.responses.append(response.error or tensors)
        if flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.ended.set()

    def is_cancelled(self) -> bool:
        return self.is_gone


class Request:
    def __init__(self, *texts: bytes) -> None:
        self.sender = Sender()
        self.request = Tensor("REQUEST", np.array(texts, np.object_))

    def get_response_sender(self) -> Sender:
        return self.sender


def get_input_tensor_by_name(request: Request, name: str) -> Any:
    return request.request if name == "REQUEST" else None
