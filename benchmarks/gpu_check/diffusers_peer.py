"""diffusers' own pipeline on the GPU, as people run it: eager, or with its U-Net compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from runtime.engines.torch_call import TORCH_TYPES


class DiffusersSampler:
    """`DDPMPipeline` as a call; the images stay on the GPU until they are read.

    Args:
        folder: a checkpoint folder.
        precision: of the whole pipeline.
        batch_size, num_steps: of each call.
        compiled: whether its U-Net goes through torch.compile(mode="max-autotune"), channels last.
        device: where it runs.
    """

    def __init__(
        self, folder: Path, precision: str, batch_size: int, num_steps: int, compiled: bool, device: str = "cuda"
    ) -> None:
        from diffusers import DDPMPipeline

        pipeline: Any = DDPMPipeline.from_pretrained(folder, use_safetensors=True)
        self._pipeline = pipeline.to(device, TORCH_TYPES[precision])
        self._pipeline.set_progress_bar_config(disable=True)
        if compiled:
            self._pipeline.unet.to(memory_format=torch.channels_last)
            self._pipeline.unet = torch.compile(self._pipeline.unet, mode="max-autotune")
        self._batch_size, self._num_steps = batch_size, num_steps

    def __call__(self) -> torch.Tensor:
        """Images in [0, 1], [N, 3, H, W] on the CPU."""
        output = self._pipeline(
            batch_size=self._batch_size, num_inference_steps=self._num_steps, output_type="pt", return_dict=False
        )
        images: torch.Tensor = output[0].cpu()
        return images
