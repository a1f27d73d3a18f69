"""The features of a TorchScript file, for real Inception-FID.

The file's module takes uint8 [N, 3, H, W] with 0..255, of any size, and returns float [N, D]: it scales and enlarges
the images itself. That is the convention of NVIDIA's `inception-2015-12-05.pt` (StyleGAN2-ADA, StyleGAN3), whose
`forward` also has an argument `return_features` that asks for the pooled 2,048 features instead of class scores;
where a module has it, it is set. Gray images are given as three equal channels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from commands.errors import reason
from diffusion.errors import InputError

_AT_ONCE = 64


class TorchScriptFeatures:
    """A TorchScript module as a feature extractor.

    Args:
        path: the file. A TorchScript file is a program: run only one whose source you trust.

    Raises:
        InputError: no such file, or not a TorchScript module.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"--features {path}: no such file; expected digits or a TorchScript file")
        try:
            self._module = torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            raise InputError(f"--features {path}: not a TorchScript file ({reason(error)})") from error
        self.name = f"TorchScript module {path.name}"
        self._path = path
        arguments = {argument.name for argument in self._module.forward.schema.arguments}
        self._options = {"return_features": True} if "return_features" in arguments else {}

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, None]:
        """uint8 [N, H, W, 1 or 3] → features float32 [N, D]; no classes.

        Raises:
            InputError: images of other channels, or a module that fails or returns something else.
        """
        if images.shape[-1] not in (1, 3):
            raise InputError(f"--features {self._path}: images have {images.shape[-1]} channels, expected 1 or 3")
        blocks = []
        for first in range(0, len(images), _AT_ONCE):
            block = images[first : first + _AT_ONCE].transpose(0, 3, 1, 2)
            x = torch.from_numpy(np.ascontiguousarray(np.broadcast_to(block, (len(block), 3, *block.shape[2:]))))
            try:
                with torch.inference_mode():
                    features = self._module(x, **self._options)
            except RuntimeError as error:
                # A script's last line is what went wrong, the ones before are where.
                last = str(error).strip().splitlines()[-1]  # behind the script's own traceback
                raise InputError(
                    f"--features {self._path}: fails on uint8 {list(x.shape)} ({last}); expected a module that "
                    "enlarges such images itself"
                ) from error
            if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(x):
                found = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
                raise InputError(f"--features {self._path}: returned {found}, expected features [{len(x)}, D]")
            blocks.append(features.float().numpy())
        return np.concatenate(blocks), None

    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
