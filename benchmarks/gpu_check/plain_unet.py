"""ddpm-cifar10-32's U-Net (Ho et al. 2020, appendix B) in PyTorch alone: 35.7 million parameters.

Its parameters have diffusers' names and shapes and its predictions are diffusers' (tested), so where diffusers is not
installed the same network is measured.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

WIDTHS = (128, 256, 256, 256)
ATTENTION = (False, True, False, False)
BLOCKS, GROUPS, EPS = 2, 32, 1e-6


class PlainUNet(nn.Module):
    """(x [N, 3, H, W], t [N]) → eps [N, 3, H, W].

    Args:
        channels: C.
        widths: channels at each resolution; each is half of the one before.
        attention: at which of them there is attention, beside the middle.
        groups: of every group norm.
    """

    def __init__(
        self,
        channels: int = 3,
        widths: tuple[int, ...] = WIDTHS,
        attention: tuple[bool, ...] = ATTENTION,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        self._width = widths[0]
        time_width = 4 * widths[0]
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.time_embedding = nn.ModuleDict(
            {"linear_1": nn.Linear(widths[0], time_width), "linear_2": nn.Linear(time_width, time_width)}
        )
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, out in enumerate(widths):
            last = level == len(widths) - 1
            inputs = [width, *[out] * (BLOCKS - 1)]
            self.down_blocks.append(_level(inputs, out, time_width, groups, attention[level], "" if last else "down"))
            skips += [out] * (BLOCKS + (not last))
            width = out
        self.mid_block = _level([width, width], width, time_width, groups, True, "")
        del self.mid_block.attentions[1]
        for level in reversed(range(len(widths))):
            inputs = []
            for _ in range(BLOCKS + 1):
                inputs.append(width + skips.pop())
                width = widths[level]
            self.up_blocks.append(_level(inputs, width, time_width, groups, attention[level], "up" if level else ""))
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], EPS)
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)
        self.shift_rows: torch.Tensor | None
        self.register_buffer("shift_rows", None)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The noise in x."""
        shifts = iter(self._shifts(t, x.dtype))
        h = self.conv_in(x)
        skips = [h]
        for block in self.down_blocks:
            for number, residual in enumerate(block.resnets):
                h = residual(h, next(shifts))
                if block.attentions:
                    h = block.attentions[number](h)
                skips.append(h)
            for sampler in block.samplers():
                h = sampler(h)
                skips.append(h)
        first, second = self.mid_block.resnets
        h = second(self.mid_block.attentions[0](first(h, next(shifts))), next(shifts))
        for block in self.up_blocks:
            for number, residual in enumerate(block.resnets):
                h = residual(torch.cat([h, skips.pop()], dim=1), next(shifts))
                if block.attentions:
                    h = block.attentions[number](h)
            for sampler in block.samplers():
                h = sampler(h)
        eps: torch.Tensor = self.conv_out(F.silu(self.conv_norm_out(h)))
        return eps

    def fold_time(self, num_timesteps: int) -> PlainUNet:
        """Evaluate what depends on t alone once for every timestep, in float32: it is looked up from then on."""
        t = torch.arange(num_timesteps)
        with torch.no_grad():
            self.shift_rows = torch.cat(self._shifts(t, torch.float32), dim=1)  # [T, ΣC]
        for residual in self._residuals():
            del residual.time_emb_proj
        del self.time_embedding
        return self

    def _shifts(self, t: torch.Tensor, kind: torch.dtype) -> list[torch.Tensor]:
        """What each residual block adds to its channels, [N, C] each."""
        if self.shift_rows is not None:
            widths = [residual.conv1.out_channels for residual in self._residuals()]
            return list(self.shift_rows[t].split(widths, dim=1))
        half = self._width // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        # Vaswani et al. 2017, section 3.5, with the last frequency at 1/10000.
        angles = t.to(torch.float32)[:, None] * torch.exp(steps * (-math.log(10000.0) / (half - 1)))
        sinusoids = torch.cat([angles.sin(), angles.cos()], dim=1).to(kind)
        linear_1, linear_2 = self.time_embedding["linear_1"], self.time_embedding["linear_2"]
        embedding = F.silu(linear_2(F.silu(linear_1(sinusoids))))
        return [residual.time_emb_proj(embedding) for residual in self._residuals()]

    def _residuals(self) -> list[_Residual]:
        blocks = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [residual for block in blocks for residual in block.resnets]


class _Level(nn.Module):
    """Residual blocks of one resolution, attention after each or nowhere, and what leads to the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(), nn.ModuleList()

    def samplers(self) -> list[nn.Module]:
        """None or one."""
        return [sampler for name in ("downsamplers", "upsamplers") for sampler in getattr(self, name, ())]


class _Residual(nn.Module):
    def __init__(self, channels: int, out: int, time_width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, EPS)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, out)
        self.norm2 = nn.GroupNorm(groups, out, EPS)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.conv_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + shift[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut: torch.Tensor = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        return shortcut + h


class _Attention(nn.Module):
    """Self-attention over the pixels, one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = self.group_norm(x).flatten(2).transpose(1, 2)  # [N, HW, C]
        q, k, v = (to(pixels).unsqueeze(1) for to in (self.to_q, self.to_k, self.to_v))  # [N, 1, HW, C]
        attended = self.to_out[0](F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + attended.transpose(1, 2).reshape(x.shape)


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return h


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h


def _level(inputs: list[int], out: int, time_width: int, groups: int, attention: bool, sampler: str) -> _Level:
    level = _Level()
    for channels in inputs:
        level.resnets.append(_Residual(channels, out, time_width, groups))
        if attention:
            level.attentions.append(_Attention(out, groups))
    if sampler == "down":
        level.downsamplers = nn.ModuleList([_Downsample(out)])
    elif sampler == "up":
        level.upsamplers = nn.ModuleList([_Upsample(out)])
    return level


def random_plain_unet(seed: int = 0, **arguments: object) -> PlainUNet:
    """Random weights, predictions about as large as noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PlainUNet(**arguments).eval()  # type: ignore[arg-type]
        x = torch.randn(2, network.conv_in.in_channels, 32, 32)
    with torch.no_grad():
        std = network(x, torch.tensor([200, 700])).std()
        network.conv_out.weight /= std
        network.conv_out.bias /= std
    return network
