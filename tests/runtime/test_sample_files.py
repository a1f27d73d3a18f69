"""Limits of what is written."""

import pytest

from diffusion.errors import InputError
from diffusion.process import SampleShape
from runtime import sample_files


def test_a_grid_has_at_most_134_million_pixels(tmp_path, monkeypatch):
    """Pillow warns above 89 million and refuses above 179 million when a picture is read back."""
    monkeypatch.setattr(sample_files, "_ArrayWriter", lambda *arguments: "a writer")
    shape = SampleShape(1, 128, 64)
    assert sample_files.open_writer("grid", tmp_path, shape, 2**14, 0, 0) == "a writer"
    with pytest.raises(InputError, match="16385 images of 64x128 make more than 134,217,728 pixels; use --format png"):
        sample_files.open_writer("grid", tmp_path, shape, 2**14 + 1, 0, 0)
    assert sample_files.open_writer("npz", tmp_path, shape, 2**14 + 1, 0, 0) == "a writer"
