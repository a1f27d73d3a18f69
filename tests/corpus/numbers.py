"""Flags that no machine can obey: numbers that are too large, too small, none, or too many digits."""

from __future__ import annotations

from collections.abc import Iterator

from tests.corpus.case import Case, case

_SAMPLE = "runtime.sample --steps 2 --backend onnxruntime --out new"
_TRAIN = "train.run --data images.npz --num-samples 0 --num-train-timesteps 12 --device cpu --out new"
_LIKELIHOOD = "benchmarks.likelihood --data images.npz --split all --threads 1"
_BIG = str(10**12)
_LONG = "9" * 5000

# A command line, a flag, and values that it must refuse.
FLAGS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (f"{_SAMPLE} --num 1", "--threads", ("2147483648", "100000", "-1", _LONG, "1.5", "")),
    (_SAMPLE, "--num", (_BIG, "0", "-1", "1e12", _LONG, "9223372036854775808")),
    (f"{_SAMPLE} --format npy", "--num", (_BIG, str(10**30))),
    (f"{_SAMPLE} --format npz", "--num", (_BIG,)),
    (f"{_SAMPLE} --num 1", "--seed", ("-1", str(2**64), "nan", _LONG)),
    (f"{_SAMPLE} --num 1", "--start", ("-1", str(2**64), str(2**200))),
    (f"{_SAMPLE} --num 1", "--batch-size", ("0", "-5", _BIG, str(2**31), str(2**63), "x")),
    ("runtime.sample --num 1 --backend openvino --out new --steps 2", "--batch-size", (_BIG, str(2**31))),
    ("runtime.sample --num 1 --out new", "--steps", ("0", "-1", _BIG, "13", _LONG)),
    ("runtime.sample --num 1 --out new", "--timesteps", ("", "1,2", "5,5", "12,0", "-1", _LONG, "a")),
    ("runtime.sample --num 1 --out new", "--timesteps", (",".join(["1"] * 5000),)),
    (f"{_SAMPLE} --num 1", "--eta", ("nan", "inf", "-1", "1e400", "x")),
    (f"{_SAMPLE} --num 1 --sampler dpmpp_2m", "--lambda-min", ("nan", "x")),
    (f"{_SAMPLE} --num 1", "--from-timestep", ("12", "-1", _BIG)),
    (f"{_SAMPLE} --num 1", "--trajectory", ("0", "-1")),
    (f"{_SAMPLE} --num 10 --format npz", "--shard-size", ("0", "-1", _LONG)),
    (f"{_SAMPLE} --num {_BIG} --format npz", "--shard-size", ("1", "1000")),
    (f"{_SAMPLE} --num 10 --format npz", "--shard", ("5/3", "0/0", "-1/2", "1/", "x", "1/2/3", f"{_BIG}/{_BIG}0")),
    (f"{_SAMPLE} --num 10 --format npz", "--workers", ("0", "-1", _BIG, "100000")),
    (f"{_SAMPLE} --num 1", "--clip-sample", ("nan", "0", "-1", "x")),
    (f"{_SAMPLE} --num 1", "--channels", ("0", "-1", _BIG, "²")),
    (f"{_SAMPLE} --num 1", "--beta-start", ("nan", "0.5", "1e400")),
    (f"{_SAMPLE} --num 1", "--num-train-timesteps", ("0", _BIG)),
    (f"{_SAMPLE} --num 1", "--class", ("0", "x", _LONG)),
    (f"{_SAMPLE} --num 1", "--guidance", ("1", "nan", "x")),
    (f"{_SAMPLE} --num 1", "--condition", ("x", "=1", "y=", "y=1", "y=nan")),
    (f"{_SAMPLE} --num 1 --engine low_res.onnx", "--condition", ("low_res=1", "low_res=floats.npz", "x=1")),
    ("runtime.serve --engine unet.onnx", "--port", ("-1", "65536", _BIG, "x")),
    ("runtime.serve --engine unet.onnx --port 0", "--threads", ("2147483648", "100000", "-1")),
    ("runtime.serve --engine unet.onnx --port 0", "--slots", ("0", "-1", _BIG, str(2**31), str(2**63))),
    ("runtime.serve --engine unet.onnx --port 0", "--max-images", ("0", "-1")),
    ("runtime.serve --engine unet.onnx --port 0", "--deadline", ("0", "-1", "nan", "inf")),
    ("runtime.serve --engine unet.onnx --port 0", "--host", ("256.1.1.1", "0.0.0.0", "", "x" * 300)),
    ("runtime.sample_bits --out new.npy", "--num", ("0", "-1", _BIG, str(10**30))),
    ("runtime.sample_bits --out new.npy --num 1", "--seed", ("-1", str(2**64))),
    (f"{_TRAIN} --batch-size 2", "--steps", ("0", "-1", _LONG)),
    (f"{_TRAIN} --steps 1", "--batch-size", ("0", "-1", _BIG, str(2**63))),
    (f"{_TRAIN} --steps 1 --batch-size 2", "--accumulate", ("0", "-1")),
    (f"{_TRAIN} --steps 1 --batch-size 2", "--learning-rate", ("nan", "-1", "0", "inf", "1e400")),
    (f"{_TRAIN} --steps 1 --batch-size 2", "--ema-decay", ("nan", "2", "-1")),
    (f"{_TRAIN} --steps 1 --batch-size 2", "--levels", ("0", "1", _BIG, "-5")),
    (f"{_TRAIN} --steps 1 --batch-size 2", "--held-out", ("-1", _BIG, "8")),
    (f"{_TRAIN} --steps 1 --batch-size 2", "--num-workers", ("-1", _BIG, "100000")),
    (f"{_TRAIN} --steps 1 --batch-size 2", "--num-samples", ("-1", _BIG)),
    (f"{_TRAIN} --steps 1 --batch-size 2", "--save-seconds", ("nan", "-1")),
    (f"{_TRAIN} --steps 1 --batch-size 2 --loss min-snr", "--min-snr-gamma", ("nan", "-1", "0")),
    (f"{_TRAIN} --steps 1 --batch-size 2", "--num-train-timesteps", ("0", "-1", _BIG)),
    (f"{_TRAIN} --steps 1 --batch-size 2", "--beta-end", ("nan", "-1", "2", "1e-300")),
    (f"{_TRAIN} --steps 1 --batch-size 2", "--seed", ("-1", str(2**64), _LONG)),
    ("train.run --data pictures --steps 1 --out new", "--image-size", ("0", "-1", _BIG, "5")),
    ("train.swiss_roll --out new", "--steps", ("0", "-1")),
    ("train.binary --steps 1 --out new", "--timesteps", ("0", "-1", _BIG)),
    ("export.to_onnx --checkpoint ckpt --out new.onnx", "--opset", ("0", "-1", "999", _LONG)),
    ("export.to_onnx --checkpoint ckpt --out new.onnx", "--image_size", ("0", "x", _BIG)),
    ("export.to_trt --onnx unet.onnx --out new.plan", "--max-batch", ("0", "-1", str(2**31), _BIG)),
    ("export.to_trt --onnx unet.onnx --out new.plan", "--profile", ("", "1", "3,2,1", f"1,2,{2**31}", "a,b,c")),
    ("export.to_trt --onnx unet.onnx --out new.plan", "--workspace", ("-1", "nan", str(10**30))),
    ("export.to_trt --onnx unet.onnx --out new.plan", "--builder-optimization-level", ("-1", "6", "x")),
    ("export.to_trt --onnx unet.onnx --out new.plan", "--compute-capabilities", ("", "x", "1", _LONG)),
    ("export.to_trt --onnx unet.onnx --out new.plan", "--minShapes", ("x", "x:", "x:1x1x4", f"x:{_BIG}x1x4x4")),
    (f"{_LIKELIHOOD} --evaluations 40", "--num", ("0", "-1", _BIG, _LONG)),
    (f"{_LIKELIHOOD} --num 3", "--evaluations", ("0", "-1", "1")),
    (f"{_LIKELIHOOD} --num 3 --evaluations 40", "--batch-size", ("0", "-1", str(2**63))),
    (f"{_LIKELIHOOD} --num 3", "--budget", ("0", "-1", "nan", "x")),
    ("benchmarks.quality --data images.npz --steps 2 --samplers ddpm --threads 1", "--num", ("0", "1", "-1")),
    ("benchmarks.quality --data images.npz --num 8 --samplers ddpm", "--steps", ("0", "x", "1,2,", "13", _LONG)),
    ("benchmarks.quality --data images.npz --num 8 --steps 2", "--samplers", ("", "x", "ddpm,x")),
    ("benchmarks.chain --engine unet.onnx --rounds 1", "--batch-sizes", ("0", "-1", "x", str(2**63))),
    ("benchmarks.kernels --rounds 1", "--shape", ("0 1 1 1", "1 1 1", f"{_BIG} {_BIG} 1 1", "65536 65536 64 64")),
    ("benchmarks.kernels --shape 1 1 4 4 --rounds 1", "--threads", ("0", "-1", "100000", _BIG)),
    ("benchmarks.compare --checkpoint ckpt --rounds 1 --steps 2", "--batch-sizes", ("0", "-1", "x")),
    ("benchmarks.compare --checkpoint ckpt --rounds 1 --batch-sizes 1", "--peers", ("nobody",)),
    ("benchmarks.swiss_roll --steps 2", "--num", ("0", "-1", _BIG)),
    ("benchmarks.swiss_roll --num 4 --steps 2", "--picture", ("x", "x.jpg")),
    ("benchmarks.serve --engine unet.onnx --requests 2 --rounds 1 --steps 2", "--slots", ("0", "-1", _BIG)),
    ("benchmarks.guidance --checkpoint ckpt --rounds 1", "--num", ("0", "-1", "x")),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """Every flag with every value."""
    for line, flag, values in FLAGS:
        for value in values:
            argv = [*line.split(), flag, *value.split()] if flag == "--shape" else [*line.split(), f"{flag}={value}"]
            command = line.split()[0]
            shown = value if len(value) <= 40 else f"{len(value)} characters"
            extra = "" if "--backend openvino" not in line and "--format" not in line else f" {line.split()[-1]}"
            yield case(f"number {command}{extra} {flag} {shown!r}", argv, [_said(flag)])


def _said(flag: str) -> str:
    """As the command says it, or as the library below it does, which knows no flags."""
    name = flag.removeprefix("--")
    spelled = (flag, name.replace("-", "_"), name.replace("-", " "), name.split("-")[-1].rstrip("s"))
    return "|".join((*spelled, "condition", "memory", "class", "unconditional", "sample", "batch profile", "alpha_bar"))
