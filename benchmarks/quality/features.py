"""Features of images, in which distances between sets of images are measured.

For digits: a small classifier trained on the real ones, for 8×8 in seconds, for 28×28 (a residual network) in a minute.
Its features are the last convolution's channels averaged over all positions, as those of Inception-FID are, but
distances in them cannot be compared with Inception-FID. The layers above tell the classes apart and little else; a
distance there hardly notices a badly drawn digit. `train.fit_table` never sees these networks: its own differ in
architecture and seed.

For real Inception-FID: a TorchScript file. Its module takes uint8 [N, 3, H, W] with 0..255, of any size, and returns
float [N, D]: it scales and enlarges the images itself. That is the convention of NVIDIA's `inception-2015-12-05.pt`
(StyleGAN2-ADA, StyleGAN3), whose `forward` also has an argument `return_features` that asks for the pooled 2,048
features instead of class scores; where a module has it, it is set. Gray images are given as three equal channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from commands.errors import reason
from diffusion.errors import InputError
from runtime.images import dequantize

NUM_CLASSES = 10
NUM_FEATURES = 64
_EPOCHS = 15
_BATCH = 64
_LEARNING_RATE = 3e-3
_DIGITS_AT_ONCE = 1024
_IMAGES_AT_ONCE = 64


class _Classifier(nn.Module):
    """Of 8×8 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, NUM_FEATURES, 3, padding=1, stride=2),
            nn.ReLU(),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(NUM_FEATURES * 4 * 4, 32), nn.ReLU(), nn.Linear(32, NUM_CLASSES)
        )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.body(x))


class _ResidualClassifier(nn.Module):
    """Of 28×28 digits: 28 → 14 → 7."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 24, 5, padding=2, stride=2),
            nn.ReLU(),
            _Residual(24),
            nn.Conv2d(24, NUM_FEATURES, 3, padding=1, stride=2),
            nn.ReLU(),
            _Residual(NUM_FEATURES),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(NUM_FEATURES * 7 * 7, 32), nn.ReLU(), nn.Linear(32, NUM_CLASSES)
        )


# By the side of the images: the network, and what a report calls it.
_NETWORKS: dict[int, tuple[type[nn.Module], str]] = {
    8: (_Classifier, "averaged last convolution of a small digit classifier; not Inception-FID"),
    28: (_ResidualClassifier, "averaged last convolution of a residual digit classifier; not Inception-FID"),
}


class DigitFeatures:
    """The trained classifier.

    Args:
        images: uint8 [N, 8, 8, 1] or [N, 28, 28, 1], the digits to train on.
        labels: int64 [N].
        seed: of the weights and of the order of the images.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int = 0) -> None:
        network, self.name = _NETWORKS[images.shape[1]]
        threads = torch.get_num_threads()
        # The caller's random state is left alone, and one thread adds up in one order.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            torch.set_num_threads(1)
            try:
                self._network = network()
                self._train(torch.from_numpy(dequantize(images)), torch.from_numpy(labels))
            finally:
                torch.set_num_threads(threads)

    def _train(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        batches = len(x) // _BATCH
        optimizer = torch.optim.AdamW(self._network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=_EPOCHS * batches)
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(x))[: batches * _BATCH].split(_BATCH):
                logits = self._network.head(self._network.convolutions(x[batch]))
                loss = functional.cross_entropy(logits, labels[batch], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self._network.eval()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 1] → features float32 [N, 64]."""
        return np.concatenate([maps.mean(dim=(2, 3)).numpy() for maps in self._maps(images)])

    def classes(self, images: np.ndarray) -> np.ndarray:
        """The digits that uint8 [N, H, W, 1] are taken for, int64 [N]."""
        with torch.inference_mode():
            return np.concatenate([self._network.head(maps).argmax(dim=1).numpy() for maps in self._maps(images)])

    def _maps(self, images: np.ndarray) -> Iterator[torch.Tensor]:
        for first in range(0, len(images), _DIGITS_AT_ONCE):
            with torch.inference_mode():
                yield self._network.convolutions(torch.from_numpy(dequantize(images[first : first + _DIGITS_AT_ONCE])))

    def fingerprint(self) -> str:
        """SHA-256 of the weights: only distances in the same features can be compared."""
        digest = hashlib.sha256()
        for tensor in self._network.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


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

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 1 or 3] → features float32 [N, D].

        Raises:
            InputError: images of other channels, or a module that fails or returns something else.
        """
        if images.shape[-1] not in (1, 3):
            raise InputError(f"--features {self._path}: images have {images.shape[-1]} channels, expected 1 or 3")
        blocks = []
        for first in range(0, len(images), _IMAGES_AT_ONCE):
            block = images[first : first + _IMAGES_AT_ONCE].transpose(0, 3, 1, 2)
            x = torch.from_numpy(np.ascontiguousarray(np.broadcast_to(block, (len(block), 3, *block.shape[2:]))))
            try:
                with torch.inference_mode():
                    features = self._module(x, **self._options)
            except RuntimeError as error:
                last = str(error).strip().splitlines()[-1]  # behind the script's own traceback
                raise InputError(
                    f"--features {self._path}: fails on uint8 {list(x.shape)} ({last}); expected a module that "
                    "enlarges such images itself"
                ) from error
            if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(x):
                found = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
                raise InputError(f"--features {self._path}: returned {found}, expected features [{len(x)}, D]")
            blocks.append(features.float().numpy())
        return np.concatenate(blocks)

    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
