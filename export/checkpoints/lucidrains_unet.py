"""The U-Net of lucidrains' denoising-diffusion-pytorch, from version 2.0 on, under the network contract.

diffusers' UNet2DModel cannot express it: blocks and attention are normalized by their RMS over the channels, attention
has learned keys and values beside those of the image, most of it is linear in the number of pixels, and images are
halved by folding 2×2 pixels into the channels. Attributes are called as the tensors of a checkpoint are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class AttentionShape:
    """Attention at one level.

    Attributes:
        full: over all pairs of pixels; linear in the number of pixels otherwise.
        heads, head_width: of queries, keys and values.
        num_memories: keys and values that are learned.
    """

    full: bool
    heads: int
    head_width: int
    num_memories: int


@dataclass(frozen=True)
class LucidrainsShape:
    """What the tensors say of the network.

    Attributes:
        in_channels, out_channels: of images and predictions.
        time_width: of the sinusoids; the embedding is four times as wide.
        widths: before the first level and after each one.
        attentions: at each level on the way down; the way up has the same.
        middle: in the middle, always full.
    """

    in_channels: int
    out_channels: int
    time_width: int
    widths: tuple[int, ...]
    attentions: tuple[AttentionShape, ...]
    middle: AttentionShape


class LucidrainsUnet(nn.Module):
    """x [N, C, H, W] and t [N], both float, → prediction [N, C or 2C, H, W].

    H and W are halved at every level but the last.

    Args:
        shape: of the network.
        theta: longest period of the sinusoids over 2π.
    """

    def __init__(self, shape: LucidrainsShape, theta: float = 10_000.0) -> None:
        super().__init__()
        width, self.theta = shape.widths[0], theta
        self.time_width = shape.time_width
        embedding = 4 * shape.time_width
        self.init_conv = nn.Conv2d(shape.in_channels, width, 7, padding=3)
        # The first is the sinusoids, which have no weights.
        self.time_mlp = nn.Sequential(
            nn.Identity(), nn.Linear(shape.time_width, embedding), nn.GELU(), nn.Linear(embedding, embedding)
        )
        levels = list(zip(shape.widths[:-1], shape.widths[1:], shape.attentions, strict=True))
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for place, (before, after, attention) in enumerate(levels):
            last = place == len(levels) - 1
            blocks = [_Block(before, before, embedding), _Block(before, before, embedding)]
            ending = nn.Conv2d(before, after, 3, padding=1) if last else _halve(before, after)
            self.downs.append(nn.ModuleList([*blocks, _attention(before, attention), ending]))
        innermost = shape.widths[-1]
        self.mid_block1 = _Block(innermost, innermost, embedding)
        self.mid_attn = _attention(innermost, shape.middle)
        self.mid_block2 = _Block(innermost, innermost, embedding)
        for place, (before, after, attention) in enumerate(reversed(levels)):
            last = place == len(levels) - 1
            blocks = [_Block(before + after, after, embedding), _Block(before + after, after, embedding)]
            ending = nn.Conv2d(after, before, 3, padding=1) if last else _double(after, before)
            self.ups.append(nn.ModuleList([*blocks, _attention(after, attention), ending]))
        self.final_res_block = _Block(2 * width, width, embedding)
        self.final_conv = nn.Conv2d(width, shape.out_channels, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The prediction."""
        x = first = self.init_conv(x)
        embedding = self.time_mlp(self._sinusoids(t))
        kept = []
        for block1, block2, attention, ending in self.downs:
            x = block1(x, embedding)
            kept.append(x)
            x = block2(x, embedding)
            x = attention(x) + x
            kept.append(x)
            x = ending(x)
        x = self.mid_block1(x, embedding)
        x = self.mid_attn(x) + x
        x = self.mid_block2(x, embedding)
        for block1, block2, attention, ending in self.ups:
            x = block1(torch.cat((x, kept.pop()), dim=1), embedding)
            x = block2(torch.cat((x, kept.pop()), dim=1), embedding)
            x = attention(x) + x
            x = ending(x)
        x = self.final_res_block(torch.cat((x, first), dim=1), embedding)
        prediction: torch.Tensor = self.final_conv(x)
        return prediction

    def _sinusoids(self, t: torch.Tensor) -> torch.Tensor:
        # Vaswani et al. 2017, section 3.5, with the last of the half as many frequencies at 1/theta itself.
        half = self.time_width // 2
        frequencies = torch.exp(torch.arange(half, device=t.device) * -(math.log(self.theta) / (half - 1)))
        angles = t[:, None] * frequencies.to(t.dtype)[None, :]
        return torch.cat((angles.sin(), angles.cos()), dim=1)  # [N, time_width]


class _RmsNorm(nn.Module):
    """x / RMS of its channels, scaled (Zhang & Sennrich 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = width**0.5
        self.g = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.normalize(x, dim=1) * self.g * self.scale


class _Convolution(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(before, after, 3, padding=1)
        self.norm = _RmsNorm(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(self.proj(x))
        return normed


class _Block(nn.Module):
    """A residual block; the time embedding scales and shifts behind the first convolution."""

    def __init__(self, before: int, after: int, embedding: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * after))
        self.block1, self.block2 = _Convolution(before, after), _Convolution(after, after)
        self.res_conv = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.mlp(embedding)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(self.block1(x) * (scale + 1) + shift)
        h = functional.silu(self.block2(h))
        total: torch.Tensor = h + self.res_conv(x)
        return total


class _LinearAttention(nn.Module):
    def __init__(self, width: int, shape: AttentionShape) -> None:
        super().__init__()
        self.heads, self.head_width = shape.heads, shape.head_width
        inner = shape.heads * shape.head_width
        self.norm = _RmsNorm(width)
        self.mem_kv = nn.Parameter(torch.zeros(2, shape.heads, shape.head_width, shape.num_memories))
        self.to_qkv = nn.Conv2d(width, 3 * inner, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(inner, width, 1), _RmsNorm(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        q, k, v = self.to_qkv(self.norm(x)).reshape(n, 3, self.heads, self.head_width, height * width).unbind(1)
        learned_k, learned_v = self.mem_kv.unsqueeze(1).expand(-1, n, -1, -1, -1).unbind(0)
        k, v = torch.cat((learned_k, k), dim=-1), torch.cat((learned_v, v), dim=-1)  # [N, heads, head_width, pixels]
        q = q.softmax(dim=-2) * self.head_width**-0.5
        context = k.softmax(dim=-1) @ v.transpose(-1, -2)  # [N, heads, head_width, head_width]
        attended: torch.Tensor = self.to_out((context.transpose(-1, -2) @ q).reshape(n, -1, height, width))
        return attended


class _FullAttention(nn.Module):
    def __init__(self, width: int, shape: AttentionShape) -> None:
        super().__init__()
        self.heads, self.head_width = shape.heads, shape.head_width
        inner = shape.heads * shape.head_width
        self.norm = _RmsNorm(width)
        self.mem_kv = nn.Parameter(torch.zeros(2, shape.heads, shape.num_memories, shape.head_width))
        self.to_qkv = nn.Conv2d(width, 3 * inner, 1, bias=False)
        self.to_out = nn.Conv2d(inner, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(n, 3, self.heads, self.head_width, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # [N, heads, pixels, head_width]
        learned_k, learned_v = self.mem_kv.unsqueeze(1).expand(-1, n, -1, -1, -1).unbind(0)
        k, v = torch.cat((learned_k, k), dim=-2), torch.cat((learned_v, v), dim=-2)
        weights = (q @ k.transpose(-1, -2) * self.head_width**-0.5).softmax(dim=-1)
        attended: torch.Tensor = self.to_out((weights @ v).transpose(-1, -2).reshape(n, -1, height, width))
        return attended


def _attention(width: int, shape: AttentionShape) -> nn.Module:
    return (_FullAttention if shape.full else _LinearAttention)(width, shape)


def _halve(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * before, after, 1))


def _double(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(before, after, 3, padding=1))
