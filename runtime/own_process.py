"""What a fork does not copy: the threads of a backend's library. What was opened before a fork is refused after it."""

from __future__ import annotations

import os

from diffusion.errors import InputError


class OwnProcess:
    """Remembers the process that opened something.

    The libraries behind the engines keep pools of threads (ONNX Runtime, OpenVINO, OpenMP) or a context of the driver
    (CUDA). A forked child has their memory and not the threads, and its first call would wait for them for ever.
    """

    def __init__(self) -> None:
        self._process_id = os.getpid()

    def check(self, what: str) -> None:
        """Raises InputError, which names what was opened, in a child that was forked since."""
        if os.getpid() != self._process_id:
            raise InputError(
                f"{what} was opened in process {self._process_id} and is used in its fork {os.getpid()}, which "
                "has none of its threads; open it in each process, or start them by multiprocessing's 'spawn'"
            )
