"""A checkpoint's network as an ONNX graph, by PyTorch's own exporter.

Two parts of diffusers' network are replaced while it is traced, by equals that make a better graph: the
frequencies of the time embedding, which a folder of constants elsewhere would round anew, and attention,
which diffusers writes for any shape and which then leaves a chain of shape arithmetic behind.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.embeddings import Timesteps

from export.checkpoints.checkpoint import ForeignCheckpoint
from export.onnx_graph import trace_module
from runtime.engines.torch_checkpoint import Checkpoint

_LONGEST_PERIOD = 10_000  # of the sinusoids, over 2π (Vaswani et al. 2017, section 3.5)


class FrequencyTable(torch.nn.Module):
    """diffusers' `Timesteps` with its frequencies held as numbers: sin t·ω_k and cos t·ω_k.

    The sinusoidal embedding of Vaswani et al. 2017, section 3.5, as Ho et al. 2020, appendix B, use it.

    At t = 999 one unit in the last place of ω moves the angle by 6e-5 rad, so an ONNX tool that evaluates
    exp(−ln(10000)·k/K) by its own exponential would change the network; here PyTorch's are kept.
    """

    frequencies: torch.Tensor

    def __init__(self, timesteps: Timesteps) -> None:
        super().__init__()
        self.cosine_first = bool(timesteps.flip_sin_to_cos)
        self.scale = float(timesteps.scale)
        self.is_odd = timesteps.num_channels % 2 == 1
        self.register_buffer("frequencies", _frequencies(timesteps))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, num_channels] of timesteps [N]."""
        angles = t[:, None] * self.frequencies  # [N, K]
        if self.scale != 1.0:
            angles = self.scale * angles
        sine, cosine = torch.sin(angles), torch.cos(angles)
        parts = [cosine, sine] if self.cosine_first else [sine, cosine]
        if self.is_odd:
            parts.append(torch.zeros_like(angles[:, :1]))
        return torch.cat(parts, dim=-1)


class PlainAttention:
    """Self-attention over the pixels of x [N, C, H, W], as diffusers' `AttnProcessor2_0` computes it.

    softmax(q kᵀ/√d) v (Vaswani et al. 2017, eq. 1), as two matrix products and a softmax between them in the
    layout [N, heads, H·W, d] that engines recognize and fuse.
    """

    def __call__(
        self,
        attention: Attention,
        hidden: torch.Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend, project, add the residual; the other arguments belong to diffusers' interface."""
        num, channels, height, width = hidden.shape
        num_pixels, heads = height * width, attention.heads
        h = hidden.reshape(num, channels, num_pixels)  # [N, C, H·W]
        if attention.group_norm is not None:
            h = attention.group_norm(h)
        h = h.transpose(1, 2)  # [N, H·W, C]
        q, k, v = attention.to_q(h), attention.to_k(h), attention.to_v(h)  # [N, H·W, heads·d]
        head_dim = q.shape[-1] // heads
        split = (num, num_pixels, heads, head_dim)
        if heads == 1:  # moving an axis of length 1 needs no transposition
            q, v = (part.reshape(num, 1, num_pixels, head_dim) for part in (q, v))
            k = k.transpose(1, 2).reshape(num, 1, head_dim, num_pixels)
        else:
            q, v = (part.reshape(split).transpose(1, 2) for part in (q, v))  # [N, heads, H·W, d]
            k = k.reshape(split).permute(0, 2, 3, 1)  # [N, heads, d, H·W]
        weights = torch.softmax((q * head_dim**-0.5) @ k, dim=-1)  # [N, heads, H·W, H·W]
        h = weights @ v  # [N, heads, H·W, d]
        h = (h if heads == 1 else h.transpose(1, 2)).reshape(num, num_pixels, heads * head_dim)
        h = attention.to_out[0](h).transpose(1, 2).reshape(num, channels, height, width)
        if attention.residual_connection:
            h = h + hidden
        return h / attention.rescale_output_factor


def trace_network(checkpoint: Checkpoint | ForeignCheckpoint, opset: int, debug: bool = False) -> Any:
    """Trace the network with inputs `x`, `t` and its conditions, output `prediction` and an open first axis.

    Args:
        checkpoint: the network; unchanged afterwards.
        opset: of the ONNX standard.
        debug: let PyTorch's exporter say on standard error what it does.

    Returns:
        An `onnx_ir.Model`, optimized by onnxscript, its weights shared with the checkpoint.
    """
    network, process = checkpoint.network, checkpoint.process.without_guidance()  # which comes last: export.guidance
    with graph_friendly(network):
        return trace_module(network, process.sample.chw, opset, debug, process.conditions)


@contextlib.contextmanager
def graph_friendly(network: torch.nn.Module) -> Iterator[None]:
    """Put the equals described above in place of diffusers' parts of a network, and the originals back."""
    embeddings = [
        (module, name, part)
        for module in network.modules()
        for name, part in module.named_children()
        if isinstance(part, Timesteps)
    ]
    processors = {
        module: module.processor for module in network.modules() if isinstance(module, Attention) and _is_plain(module)
    }
    try:
        for module, name, part in embeddings:
            setattr(module, name, FrequencyTable(part))
        for module in processors:
            module.set_processor(PlainAttention())
        yield
    finally:
        for module, name, part in embeddings:
            setattr(module, name, part)
        for module, processor in processors.items():
            module.set_processor(processor)


def _is_plain(attention: Attention) -> bool:
    # Whatever else diffusers' class can do, no UNet2DModel asks for; should one, its own code is traced.
    extras = (attention.spatial_norm, attention.norm_q, attention.norm_k, attention.norm_cross)
    return isinstance(attention.processor, AttnProcessor2_0) and not any(extras)


def _frequencies(timesteps: Timesteps) -> torch.Tensor:
    # The operations of diffusers' get_timestep_embedding in their order: every bit is the same.
    num_frequencies = timesteps.num_channels // 2
    exponents = -math.log(_LONGEST_PERIOD) * torch.arange(num_frequencies, dtype=torch.float32)
    return torch.exp(exponents / (num_frequencies - timesteps.downscale_freq_shift))
