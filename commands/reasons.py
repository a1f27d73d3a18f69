"""What another library says of its failure, in one line that is short and keeps what matters."""

from __future__ import annotations

import re

_MOST = 400
# What comes before the reason: ONNX Runtime's code, and OpenVINO's and ONNX Runtime's places in their sources.
_NOISE = (
    re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "),
    re.compile(r"Exception from \S+:\d+: "),
    re.compile(r"/\S+\.(?:cc|cpp|h|hpp):\d+ (?:.*?\) )?"),
)


def reason(error: Exception | str) -> str:
    """The message in one line; of a long one its beginning and its end, as either may name the operator."""
    text = " ".join(str(error).split()) or type(error).__name__
    for pattern in _NOISE:
        text = pattern.sub("", text)
    if len(text) <= _MOST:
        return text
    half = _MOST // 2
    return f"{text[:half].rstrip()} … {text[-half:].lstrip()}"
