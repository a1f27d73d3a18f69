"""docs/deploy: the files for clusters do what they say, as far as they can be run here."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from runtime.sample import main
from runtime.sample_flags import check_flags, sample_parser
from tests.runtime.gaussian_folder import NETWORK
from tests.runtime.runs.sharded_runs import images_of

DEPLOY = Path(__file__).parents[1] / "docs" / "deploy"
ROOT = Path(__file__).parents[1]


def test_the_array_job_draws_the_run(tmp_path, monkeypatch):
    """As Slurm runs it: a shell, a task's variables, `ddpm-rt` on the path."""
    monkeypatch.chdir(tmp_path)
    NETWORK.save_onnx(tmp_path / "unet.onnx")
    script = tmp_path / "bin" / "ddpm-rt"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ddpm_rt "$@"\n')
    script.chmod(0o755)
    text = (DEPLOY / "sample.sbatch").read_text()
    lowest, highest = map(int, re.findall(r"--array=(\d+)-(\d+)", text)[0])
    tasks = highest - lowest + 1
    for task in (lowest, highest):
        environment = os.environ | {
            "PATH": f"{script.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_COUNT": str(tasks),
            "SLURM_ARRAY_TASK_MIN": str(lowest),
            "SLURM_ARRAY_TASK_MAX": str(highest),
            "NUM": "8000",
            "STEPS": "2",
            "WORKERS": "1",
        }
        done = subprocess.run(
            ["bash", DEPLOY / "sample.sbatch"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    whole = ["--num", "8000", "--steps", "2", "--shard-size", "1000", "--batch-size", "50", "--out", "one"]
    assert main(whole) == 0
    expected = [each for each in images_of("one") if each[0] // 1000 in (0, 7)]
    assert images_of("run") == expected


def test_the_indexed_job_is_one(monkeypatch):
    job = yaml.safe_load((DEPLOY / "sample-job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["completionMode"] == "Indexed"
    assert pod["restartPolicy"] == "OnFailure"
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables["JOB_COMPLETIONS"] == str(spec["completions"]) == str(spec["parallelism"])
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    command, *flags = container["args"]
    assert command == "sample"
    assert all(isinstance(flag, str) for flag in flags)
    args = sample_parser().parse_args(flags)
    check_flags(args)
    assert (args.shard, args.resume) == ("auto", True)
    assert args.shard_size % args.batch_size == 0


@pytest.mark.parametrize("name", ["cmake", "g++", 'constraints/cpu.txt "/src[cpu]"', 'ENTRYPOINT ["ddpm-rt"]'])
def test_the_image_has_what_the_readme_asks_for(name):
    assert name in (DEPLOY / "Dockerfile").read_text()


def test_the_ray_cluster_is_one():
    """By Ray's own schema, as `ray up` applies it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["max_workers"] == len(config["provider"]["worker_ips"])
    words = shlex.split(next(line for line in config["setup_commands"] if "install" in line))
    assert Path(words[words.index("-c") + 1]).relative_to("/tmp/ddpm-rt") == Path("constraints/cpu.txt")
    assert config["file_mounts"] == {"/tmp/ddpm-rt": "."}


def test_the_ray_job_draws_the_run(tmp_path):
    """As far as the command that `ray job submit` is given."""
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    ray.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": "s3://bucket/run"}
    done = subprocess.run(
        ["bash", DEPLOY / "sample-ray.sh"], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    *of_ray, address, dashes, program, command = (words := done.stdout.split("\n"))[:7]
    assert (of_ray, address, dashes) == (["job", "submit", "--address"], "http://127.0.0.1:8265", "--")
    assert (program, command) == ("ddpm-rt", "sample")
    args = sample_parser().parse_args(words[7:-1])
    check_flags(args)
    assert (args.ray, args.resume, str(args.out)) == ("auto", True, "s3://bucket/run")
    assert args.shard_size % args.batch_size == 0
