"""A program for the environment that has tritonclient: asks a Triton server, and writes what it answered.

`python triton_client.py ADDRESS QUESTIONS ANSWERS`: a JSON file with REQUEST texts, and the .npz file to write: the
images of question k are `k`, its error is in `errors`, its previews are counted in `previews`.
"""

import json
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2


def main(address: str, questions_file: str, answers_file: str) -> None:
    questions = json.loads(Path(questions_file).read_text())
    for config in questions["configs"]:  # by Triton's own schema
        text_format.Parse(config, model_config_pb2.ModelConfig())
    client = grpc.InferenceServerClient(address)
    came: queue.Queue = queue.Queue()
    client.start_stream(callback=lambda result, error: came.put((result, error)))
    found, errors, previews = {}, [], [0] * len(questions["texts"])
    for number, text in enumerate(questions["texts"]):
        tensor = grpc.InferInput("REQUEST", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode()], np.object_))
        client.async_stream_infer(questions["model"], [tensor], request_id=str(number))
    while len(found) + len(errors) < len(questions["texts"]):
        result, error = came.get(timeout=120)
        if error is not None:
            errors.append(str(error))
            continue
        number = result.get_response().id
        images = result.as_numpy("IMAGES")
        if len(images):
            found[number] = images
        else:
            previews[int(number)] += len(result.as_numpy("PREVIEW_PLACES"))
    client.stop_stream()
    np.savez(answers_file, errors=np.array(errors), previews=np.array(previews), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
