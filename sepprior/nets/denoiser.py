"""One-dimensional U-Net that denoises windows of whitened noise at any noise level.

Convolutions over time see events (bursts, jumps); at the coarsest of the stride-2
levels, which has at most 64 positions whatever the window, self-attention ties the
whole window together (a pulse train has one phase). The cost therefore grows like
the window's length. Residual blocks with group normalisation, modulated by the noise
level (Karras et al. 2022, appendix F; Dhariwal and Nichol 2021).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

COARSEST = 64
"""Most positions at the coarsest level."""
GROUPS = 8
EMBEDDING = 128
KERNEL = 3


def n_levels(window: int) -> int:
    """Halvings after which a window of `window` samples has at most 64 positions."""
    return max(1, math.ceil(math.log2(window / COARSEST)))


def _conv(into: int, out: int, kernel: int = KERNEL) -> nn.Conv2d:
    """Convolution over the last axis of (B, C, 1, N), which it leaves as long."""
    return nn.Conv2d(into, out, (1, kernel), padding=(0, kernel // 2))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that starts by returning zero."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _interleave(h: Tensor) -> Tensor:
    """(B, 2 C, 1, N) to (B, C, 1, 2 N): the two halves of the channels alternate."""
    b, c, _, n = h.shape
    pairs = h.permute(0, 3, 2, 1).reshape(b, n, 2, c // 2)
    return pairs.reshape(b, 2 * n, 1, c // 2).permute(0, 3, 2, 1)


class ResidualBlock(nn.Module):
    """Two convolutions with a skip, scaled and shifted by the noise level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = _conv(channels, channels)
        self.modulate = nn.Linear(EMBEDDING, 2 * channels)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = _zero(_conv(channels, channels))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Features (B, C, N) and embedded noise levels (B, E) to (B, C, N)."""
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, 1)
        inner = self.conv1(functional.silu(self.norm1(h)))
        inner = self.norm2(inner) * (1.0 + scale) + shift
        return h + self.conv2(functional.silu(inner))


class Attention(nn.Module):
    """Self-attention over the positions of the coarsest level."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = _conv(channels, 3 * channels, 1)
        self.out = _zero(_conv(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        """Features (B, C, N) to (B, C, N)."""
        b, c, _, n = h.shape
        qkv = self.qkv(self.norm(h)).view(b, 3, self.heads, c // self.heads, n)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return h + self.out(mixed.transpose(-1, -2).reshape(b, c, 1, n))


class Denoiser(nn.Module):
    """U-Net from V views of a noisy window (B, V, N) to a correction (B, N).

    The last layer starts at zero, so that an untrained network corrects nothing.

    Args:
        window: N.
        width: channels at half resolution; the levels below have twice as many.
        views: V, how many linear maps of the window the network sees.
    """

    def __init__(self, *, window: int, width: int, views: int) -> None:
        super().__init__()
        depth = n_levels(window)
        self.window = window
        self.padded = math.ceil(window / 2**depth) * 2**depth
        widths = [width * min(2, 2**i) for i in range(depth)]
        half = EMBEDDING // 4
        frequencies = torch.exp(torch.linspace(math.log(0.25), math.log(8.0), half))
        self.frequencies = nn.Buffer(frequencies, persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(2 * half, EMBEDDING),
            nn.SiLU(),
            nn.Linear(EMBEDDING, EMBEDDING),
            nn.SiLU(),
        )
        coarse = self.padded // 2**depth
        self.enter = nn.Conv2d(views, width, (1, 6), (1, 2), padding=(0, 2))
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        self.grow = nn.ModuleList()
        self.up = nn.ModuleList()
        for a, b in itertools.pairwise(widths):
            self.down.append(ResidualBlock(a))
            self.shrink.append(nn.Conv2d(a, b, (1, 4), (1, 2), padding=(0, 1)))
            self.grow.append(_conv(b, 2 * a))
            self.up.append(ResidualBlock(a))
        self.position = nn.Parameter(0.1 * torch.randn(widths[-1], 1, coarse))
        self.middle1 = ResidualBlock(widths[-1])
        self.attend = Attention(widths[-1])
        self.middle2 = ResidualBlock(widths[-1])
        self.leave = _zero(_conv(width, 2))

    def forward(self, x: Tensor, log_level: Tensor) -> Tensor:
        """Corrections (B, N) for noisy views (B, V, N) at log noise levels (B,)."""
        angle = log_level[:, None] * self.frequencies
        embedding = self.embed(torch.cat([angle.sin(), angle.cos()], -1))
        x = functional.pad(x, (0, self.padded - self.window)).unsqueeze(2)
        # Channels last in memory, twice as fast on a CPU. Written with permutations:
        # a change of memory format is not supported under vmap.
        h = self.enter(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
        skips = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            h = block(h, embedding)
            skips.append(h)
            h = shrink(h)
        h = self.middle1(h + self.position, embedding)
        h = self.middle2(self.attend(h), embedding)
        for block, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            h = block(_interleave(grow(h)) + skips.pop(), embedding)
        out = _interleave(self.leave(functional.silu(h)))
        return out[:, 0, 0, : self.window]
