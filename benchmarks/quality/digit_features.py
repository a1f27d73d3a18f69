"""What a small classifier of the 8×8 digits sees, for distances between sets of digits.

The features are the last convolution's channels averaged over all positions, as those of Inception-FID are, but the
network is another one, trained on the real digits in seconds: distances in them cannot be compared with Inception-FID.
The layers above tell the classes apart and little else; a distance there hardly notices a badly drawn digit.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from runtime.images import dequantize

NUM_CLASSES = 10
NUM_FEATURES = 64
_EPOCHS = 15
_BATCH = 64
_LEARNING_RATE = 3e-3
_AT_ONCE = 1024


class _Classifier(nn.Module):
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


class DigitFeatures:
    """The trained classifier.

    Args:
        images: uint8 [N, 8, 8, 1], the digits to train on.
        labels: int64 [N].
        seed: of the weights and of the order of the images.
    """

    name = "averaged last convolution of a small digit classifier; not Inception-FID"

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int = 0) -> None:
        threads = torch.get_num_threads()
        # The caller's random state is left alone, and one thread adds up in one order.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            torch.set_num_threads(1)
            try:
                self._network = _Classifier()
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

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [N, 8, 8, 1] → features float32 [N, 64], and the digits they are taken for, int64 [N]."""
        features, classes = [], []
        with torch.inference_mode():
            for first in range(0, len(images), _AT_ONCE):
                maps = self._network.convolutions(torch.from_numpy(dequantize(images[first : first + _AT_ONCE])))
                features.append(maps.mean(dim=(2, 3)).numpy())
                classes.append(self._network.head(maps).argmax(dim=1).numpy())
        return np.concatenate(features), np.concatenate(classes)

    def fingerprint(self) -> str:
        """SHA-256 of the weights: only distances in the same features can be compared."""
        digest = hashlib.sha256()
        for tensor in self._network.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()
