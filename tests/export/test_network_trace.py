"""The parts that stand in for diffusers' while the network is traced: equal, and only for that time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.embeddings import Timesteps

from export.network_trace import FrequencyTable, PlainAttention, graph_friendly
from runtime.engines.torch_checkpoint import load_checkpoint
from tests.checkpoints import save_tiny_checkpoint


@pytest.mark.parametrize("num_channels", [128, 64, 7])
@pytest.mark.parametrize("flip_sin_to_cos", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
def test_frequencies_are_those_of_diffusers_to_the_bit(num_channels: int, flip_sin_to_cos: bool, shift: int) -> None:
    original = Timesteps(num_channels, flip_sin_to_cos, shift)
    t = torch.arange(1000, dtype=torch.float32)
    assert torch.equal(FrequencyTable(original)(t), original(t))


def test_a_scale_of_timesteps_is_kept() -> None:
    original = Timesteps(16, True, 0, scale=1000)
    t = torch.linspace(0, 1, 11)
    assert torch.equal(FrequencyTable(original)(t), original(t))


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("groups", [None, 8])
def test_attention_is_that_of_diffusers(heads: int, groups: int | None) -> None:
    torch.manual_seed(0)
    attention = Attention(
        32,
        heads=heads,
        dim_head=32 // heads,
        norm_num_groups=groups,
        residual_connection=True,
        rescale_output_factor=1.5,
        bias=True,
        upcast_softmax=True,
        _from_deprecated_attn_block=True,
    ).eval()
    for parameter in attention.parameters():  # away from zero biases, to make the softmax far from uniform
        torch.nn.init.normal_(parameter, std=0.3)
    assert isinstance(attention.processor, AttnProcessor2_0)
    x = torch.randn(3, 32, 4, 6)
    with torch.no_grad():
        expected = attention(x)
        attention.set_processor(PlainAttention())
        found = attention(x)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=2e-5)


def test_stand_ins_leave_no_trace(tmp_path: Path) -> None:
    unet = load_checkpoint(save_tiny_checkpoint(tmp_path)).unet
    before = dict(unet.named_modules()), {name: m.processor for name, m in attentions(unet).items()}
    with pytest.raises(KeyboardInterrupt):
        interrupt_between(unet)
    assert before == (dict(unet.named_modules()), {name: m.processor for name, m in attentions(unet).items()})


def interrupt_between(unet: torch.nn.Module) -> None:
    with graph_friendly(unet):
        assert isinstance(unet.time_proj, FrequencyTable)
        assert {type(m.processor) for m in attentions(unet).values()} == {PlainAttention}
        raise KeyboardInterrupt


def attentions(unet: torch.nn.Module) -> dict[str, Attention]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}
