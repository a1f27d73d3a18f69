#!/bin/bash
# A run of 50,000 samples as a job of a Ray cluster: HEAD=http://10.0.0.1:8265 bash docs/deploy/sample-ray.sh
# Every machine has the engine at the same path; OUT is a folder that all of them see, or a store, s3://bucket/run.
# The job is submitted again with the same command until it is done; it goes on where it was.
set -euo pipefail

exec ray job submit --address "${HEAD:-http://127.0.0.1:8265}" -- \
    ddpm-rt sample --engine "${ENGINE:-/samples/unet.onnx}" --out "${OUT:-/samples/run}" --num "${NUM:-50000}" \
    --steps "${STEPS:-50}" --shard-size 1000 --batch-size 50 --ray auto --resume
