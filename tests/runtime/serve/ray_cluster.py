"""A program: Ray Serve on this machine with two replicas, of which one is killed under load; writes what came of it.

`… ray_cluster ENGINE FOLDER FILE`: the engine, a folder for Ray's own files, whose path is short, and the result.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

REQUESTS, CLIENTS, NUM, STEPS = 60, 12, 16, 400


def main(engine: str, folder: str, result: str) -> None:
    """Start, load, kill, wait, report."""
    import ray
    from ray import serve

    from runtime.serve.ray_serve import Settings, build
    from runtime.serve.server import listen

    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
    context = ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        _temp_dir=folder,
    )
    assert context is not None
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = Settings(engine=engine, without_token=True, min_replicas=2, max_replicas=2)
    serve.run(build(settings), route_prefix="/", name="digits")
    url = f"http://127.0.0.1:{port}"
    outcomes: list[dict[str, Any]] = []

    def ask(start: int) -> None:
        body = {"num": NUM, "seed": 5, "start": start, "steps": STEPS}
        answer = httpx.post(
            f"{url}/v1/images", json=body, headers={"Accept": "application/x-npz"}, timeout=120, trust_env=False
        )
        outcome = {"start": start, "status": answer.status_code}
        if answer.status_code == 200:
            with np.load(io.BytesIO(answer.content)) as arrays:
                outcome["digest"] = hashlib.sha256(arrays["arr_0"].tobytes()).hexdigest()
        else:
            outcome["said"] = answer.text
        outcomes.append(outcome)

    def replicas() -> list[str]:
        named = ray.util.list_named_actors(all_namespaces=True)
        return sorted(each["name"] for each in named if "SERVE_REPLICA" in each["name"])

    before = replicas()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask, start) for start in range(REQUESTS)]
        while len(outcomes) < CLIENTS:
            time.sleep(0.005)
        ray.kill(ray.get_actor(before[0], namespace="serve"))
        for each in asking:
            each.result()
    failed = [each["start"] for each in outcomes if each["status"] != 200]
    first = outcomes.copy()
    outcomes.clear()
    for start in failed:
        ask(start)
    end = time.monotonic() + 120
    while time.monotonic() < end and (len(replicas()) < 2 or before[0] in replicas()):
        time.sleep(0.1)
    after = replicas()
    serve.shutdown()
    ray.shutdown()
    found = {"first": first, "again": outcomes, "before": before, "after": after}
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    main(*sys.argv[1:])
