"""Every file that a command reads: its name in the folder of `tests.corpus.folder`, and a command line for it."""

from __future__ import annotations

from dataclasses import dataclass

_SAMPLE = "runtime.sample --num 3 --steps 2 --threads 1 --out new"
_TRAIN = "train.run --steps 1 --batch-size 2 --num-samples 0 --num-train-timesteps 12 --device cpu --out new"
_HO = (
    "--allow-pickle --image_size 16 --beta_schedule linear --beta_start 1e-4 --beta_end 0.02 "
    "--num_diffusion_timesteps 100 --var_type fixedlarge"
)
_LIKELIHOOD = "benchmarks.likelihood --data images.npz --split all --num 3 --evaluations 40 --batch-size 8 --threads 1"
_QUALITY = "benchmarks.quality --num 8 --steps 2 --samplers ddpm --seeds 2 --rounds 1 --threads 1"


@dataclass(frozen=True)
class Reader:
    """A file and a command line that reads it.

    Attributes:
        file: relative to the folder.
        line: the command and its arguments.
        kind: `json`, or another word for what is in the file.
        may_lack: whether the command does without it.
    """

    file: str
    line: str
    kind: str
    may_lack: bool = False

    @property
    def name(self) -> str:
        """Of its cases."""
        return f"{self.line.split()[0]} {self.file}"


READERS = (
    Reader("unet.onnx", f"{_SAMPLE} --backend onnxruntime", "onnx"),
    Reader("unet.onnx", "runtime.serve --engine unet.onnx --port 0", "onnx"),
    Reader("unet.onnx", "export.to_openvino --onnx unet.onnx --out new.xml", "onnx"),
    Reader("unet.onnx", "export.to_trt --onnx unet.onnx --out new.plan", "onnx"),
    Reader("unet.onnx", "export.inspect unet.onnx", "onnx"),
    Reader("unet.onnx", _LIKELIHOOD, "onnx"),
    Reader("unet.onnx", f"{_QUALITY} --data images.npz --engine unet.onnx", "onnx"),
    Reader("unet.onnx", "benchmarks.chain --engine unet.onnx --batch-sizes 2 --steps 2 --rounds 1", "onnx"),
    Reader("unet.onnx", "benchmarks.serve --engine unet.onnx --requests 2 --rounds 1 --steps 2", "onnx"),
    Reader("heartbeat.onnx", "runtime.sample_bits --num 2", "onnx"),
    Reader("swiss_roll.onnx", "benchmarks.swiss_roll --num 4 --steps 2", "onnx"),
    Reader("unet.xml", f"{_SAMPLE} --engine unet.xml", "xml"),
    Reader("unet.bin", f"{_SAMPLE} --engine unet.xml", "bin"),
    Reader("unet.xml.json", f"{_SAMPLE} --engine unet.xml", "json"),
    Reader("unet.xml.json", "export.inspect unet.xml", "json"),
    Reader("unet.xml", "export.inspect unet.xml", "xml"),
    Reader("unet.bin", "export.inspect unet.xml", "bin"),
    Reader("unet.plan.json", "export.inspect unet.plan", "json"),
    Reader("unet.plan", "export.inspect unet.plan", "plan"),
    Reader("ckpt/model_index.json", f"{_SAMPLE} --engine ckpt", "json"),
    Reader("ckpt/unet/config.json", f"{_SAMPLE} --engine ckpt", "json"),
    Reader("ckpt/scheduler/scheduler_config.json", f"{_SAMPLE} --engine ckpt", "json"),
    Reader("ckpt/unet/diffusion_pytorch_model.safetensors", f"{_SAMPLE} --engine ckpt", "safetensors"),
    Reader("ckpt/unet/diffusion_pytorch_model.safetensors", "export.to_onnx --checkpoint ckpt --out new.onnx",
           "safetensors"),
    Reader("ckpt/unet/config.json", "export.to_onnx --checkpoint ckpt --out new.onnx", "json"),
    Reader("ckpt/unet/config.json", "benchmarks.compare --checkpoint ckpt --batch-sizes 1 --steps 2 --rounds 1",
           "json"),
    Reader("ckpt/unet/config.json", "benchmarks.guidance --checkpoint ckpt --batch-sizes 1 --rounds 1 --num 1 "
                                    "--steps 2", "json"),
    Reader("ckpt/unet/config.json", "export.inspect ckpt", "json"),
    Reader("trained/train.json", f"{_SAMPLE} --engine trained", "json", may_lack=True),
    Reader("model.ckpt", f"export.convert model.ckpt --out new {_HO}", "pickle"),
    Reader("model.pt", f"export.to_onnx --checkpoint model.pt --out new.onnx {_HO}", "pickle"),
    Reader("model.pt", "export.inspect model.pt --allow-pickle", "pickle"),
    Reader("roll/mlp.json", "export.mlp_to_onnx --checkpoint roll --out new.onnx", "json"),
    Reader("roll/mlp.safetensors", "export.mlp_to_onnx --checkpoint roll --out new.onnx", "safetensors"),
    Reader("table.json", "runtime.sample --num 3 --threads 1 --out new --sampler table.json", "json"),
    Reader("table.json", "export.inspect table.json", "json"),
    Reader("table.json", "runtime.serve --engine unet.onnx --port 0 --table table.json", "json"),
    Reader("states.npy", f"{_SAMPLE} --x-init states.npy", "npy"),
    Reader("states.npz", f"{_SAMPLE} --x-init states.npz", "npz"),
    Reader("picture.png", f"{_SAMPLE} --x-init picture.png --from-timestep 5", "picture"),
    Reader("small.npy", f"{_SAMPLE} --engine low_res.onnx --condition low_res=small.npy", "npy"),
    Reader("samples/run.json", f"{_SAMPLE} --format npy --out samples --resume", "json"),
    Reader("samples/run.json", "export.inspect samples/run.json", "json"),
    Reader("shards/run.json", "runtime.gather shards --out new.npz", "json"),
    Reader("shards/run.json", "export.inspect shards", "json"),
    Reader("shards/shard-000000000-000000001.json", "runtime.gather shards --out new.npz", "json"),
    Reader("shards/shard-000000000-000000001.npz", "runtime.gather shards --out new.npz", "npz"),
    Reader("token.txt", "runtime.serve --engine unet.onnx --port 0 --token-file token.txt", "text"),
    Reader("images.npz", f"{_TRAIN} --data images.npz", "npz"),
    Reader("images.npy", f"{_TRAIN} --data images.npy", "npy"),
    Reader("pictures/3.png", f"{_TRAIN} --data pictures", "picture", may_lack=True),
    Reader("betas.json", f"{_TRAIN} --data images.npz --betas betas.json", "json"),
    Reader("images.npz", _LIKELIHOOD, "npz"),
    Reader("images.npz", f"{_QUALITY} --data images.npz", "npz"),
)  # fmt: skip
