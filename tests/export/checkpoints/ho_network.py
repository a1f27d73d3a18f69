"""The U-Net of Ho et al. 2020, written from appendix B and the description of its TensorFlow operations: an oracle.

Images are [N, H, W, C] as there, numbers float64 but for the angles of the embedding, which the projects compute in
float32. Weights are named, shaped and made as the PyTorch projects save them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class HoNetwork:
    """A network with random weights.

    Args:
        ch, ch_mult, num_res_blocks: widths and depth.
        attention: the levels that attend.
        channels: of the image.
        seed: of the weights.
    """

    def __init__(
        self,
        ch: int = 32,
        ch_mult: tuple[int, ...] = (1, 2),
        num_res_blocks: int = 1,
        attention: tuple[int, ...] = (1,),
        channels: int = 3,
        seed: int = 0,
    ) -> None:
        self.ch, self.ch_mult, self.num_res_blocks, self.attention = ch, ch_mult, num_res_blocks, attention
        self._channels, self._generator = channels, torch.Generator().manual_seed(seed)
        self._making, self.tensors = True, dict[str, Tensor]()
        side = 2 ** (len(ch_mult) - 1)
        self._forward(torch.zeros(1, side, side, channels), torch.zeros(1))  # a weight is made when it is first used
        self._making = False

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction [N, C, H, W] in float64 for x [N, C, H, W] and t [N]."""
        return self._forward(x.double().permute(0, 2, 3, 1), t).permute(0, 3, 1, 2)

    def _weights(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if self._making and f"{name}.weight" not in self.tensors:
            for kind, size in (("weight", shape), ("bias", shape[:1])):
                noise = torch.randn(size, generator=self._generator)
                fan_in = noise[0].numel() if noise.ndim > 1 else 1
                self.tensors[f"{name}.{kind}"] = noise / fan_in**0.5 if noise.ndim > 1 else 0.5 + 0.3 * noise
        weight, bias = self.tensors[f"{name}.weight"].double(), self.tensors[f"{name}.bias"].double()
        assert weight.shape == shape
        return weight, bias

    def _forward(self, x: Tensor, t: Tensor) -> Tensor:
        temb = self._embed(t)
        h = self._convolve("conv_in", x, self.ch)
        kept, last = [h], len(self.ch_mult) - 1
        for level, factor in enumerate(self.ch_mult):
            for block in range(self.num_res_blocks):
                h = self._block(f"down.{level}", block, level, h, temb, self.ch * factor)
                kept.append(h)
            if level < last:
                h = self._halve(f"down.{level}.downsample.conv", h)
                kept.append(h)
        h = self._residual("mid.block_1", h, temb, h.shape[-1])
        h = self._attend("mid.attn_1", h)
        h = self._residual("mid.block_2", h, temb, h.shape[-1])
        for level in reversed(range(last + 1)):
            for block in range(self.num_res_blocks + 1):
                both = torch.cat([h, kept.pop()], dim=-1)
                h = self._block(f"up.{level}", block, level, both, temb, self.ch * self.ch_mult[level])
            if level:
                twice = h.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
                h = self._convolve(f"up.{level}.upsample.conv", twice, h.shape[-1])
        assert not kept
        return self._convolve("conv_out", swish(self._normalize("norm_out", h)), self._channels)

    def _block(self, scope: str, block: int, level: int, h: Tensor, temb: Tensor, width: int) -> Tensor:
        h = self._residual(f"{scope}.block.{block}", h, temb, width)
        return self._attend(f"{scope}.attn.{block}", h) if level in self.attention else h

    def _embed(self, t: Tensor) -> Tensor:
        half = self.ch // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
        angles = (t.float()[:, None] * frequencies).double()
        h = torch.cat([angles.sin(), angles.cos()], dim=1)
        h = swish(self._dense("temb.dense.0", h, 4 * self.ch))
        return self._dense("temb.dense.1", h, 4 * self.ch)

    def _residual(self, scope: str, x: Tensor, temb: Tensor, width: int) -> Tensor:
        h = self._convolve(f"{scope}.conv1", swish(self._normalize(f"{scope}.norm1", x)), width)
        h = h + self._dense(f"{scope}.temb_proj", swish(temb), width)[:, None, None, :]
        h = self._convolve(f"{scope}.conv2", swish(self._normalize(f"{scope}.norm2", h)), width)
        return h + (x if x.shape[-1] == width else self._pointwise(f"{scope}.nin_shortcut", x, width))

    def _attend(self, scope: str, x: Tensor) -> Tensor:
        width, h = x.shape[-1], self._normalize(f"{scope}.norm", x)
        q, k, v = (self._pointwise(f"{scope}.{name}", h, width) for name in "qkv")
        weights = torch.einsum("nhwc,nHWc->nhwHW", q, k) / math.sqrt(width)
        weights = weights.flatten(3).softmax(dim=-1).view_as(weights)
        return x + self._pointwise(f"{scope}.proj_out", torch.einsum("nhwHW,nHWc->nhwc", weights, v), width)

    def _normalize(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights(name, x.shape[-1:])
        groups = x.reshape(len(x), -1, 32, x.shape[-1] // 32)
        centered = groups - groups.mean(dim=(1, 3), keepdim=True)
        scaled = centered / torch.sqrt(centered.square().mean(dim=(1, 3), keepdim=True) + 1e-6)
        return scaled.reshape(x.shape) * weight + bias

    def _dense(self, name: str, x: Tensor, width: int) -> Tensor:
        weight, bias = self._weights(name, (width, x.shape[-1]))
        return x @ weight.T + bias

    def _pointwise(self, name: str, x: Tensor, width: int) -> Tensor:
        weight, bias = self._weights(name, (width, x.shape[-1], 1, 1))
        return torch.einsum("nhwc,dc->nhwd", x, weight[:, :, 0, 0]) + bias

    def _convolve(self, name: str, x: Tensor, width: int) -> Tensor:
        weight, bias = self._weights(name, (width, x.shape[-1], 3, 3))
        return _slide(torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1)), weight, stride=1) + bias

    def _halve(self, name: str, x: Tensor) -> Tensor:
        # TensorFlow's SAME padding of a stride of 2 over an even size: one row below and one column to the right.
        weight, bias = self._weights(name, (x.shape[-1], x.shape[-1], 3, 3))
        return _slide(torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 1)), weight, stride=2) + bias


def swish(x: Tensor) -> Tensor:
    """x · σ(x), the nonlinearity of the network."""
    return x * torch.sigmoid(x)


def _slide(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    windows = x.unfold(1, 3, stride).unfold(2, 3, stride)  # [N, H, W, C, 3, 3]
    return torch.einsum("nhwcij,dcij->nhwd", windows, weight.to(x.dtype))
