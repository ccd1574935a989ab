"""A recurrent generator: few latents drive a long short-term memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sepprior.nets.waveform import WaveformGenerator


class LSTMCell(nn.Module):
    """One layer of long short-term memory (Hochreiter and Schmidhuber 1997).

    ``i, f, o = sigmoid(...)``, ``g = tanh(...)``, ``c <- f c + i g``, ``h = o tanh c``.
    Written out because the fused kernels have no forward-mode derivative, which the
    error bars of a separation need; training, which does not, uses them.

    Args:
        inputs: size of the input.
        cells: size H of the state.
    """

    def __init__(self, inputs: int, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.input = nn.Linear(inputs, 4 * cells)
        self.recurrent = nn.Linear(cells, 4 * cells, bias=False)
        with torch.no_grad():
            # A unit forget bias keeps the memory open (Jozefowicz et al. 2015).
            self.input.bias.zero_()
            self.input.bias[cells : 2 * cells] = 1.0
            nn.init.orthogonal_(self.recurrent.weight)

    def forward(self, driven: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Next state from ``driven = input(x)`` (B, 4 H), h and c (B, H)."""
        i, f, g, o = (driven + self.recurrent(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class LSTMGenerator(WaveformGenerator):
    """Code (B, K + L) to a waveform (B, N), a sample per step.

    The code sets the first state of every layer and is the first layer's input at each
    step; the sample is a linear function of the last layer's state. With 3 latents and
    300 steps the waveforms form a three-dimensional family: the network describes what
    is coherent in the noise, and the range error all the rest.

    Args:
        window: N.
        code: K + L.
        width: cells of each layer.
        layers: number of layers.
    """

    def __init__(self, *, window: int, code: int, width: int, layers: int) -> None:
        super().__init__()
        self.window, self.code, self.width = window, code, width
        self.start = nn.Linear(code, 2 * layers * width)
        self.cells = nn.ModuleList(
            LSTMCell(code if i == 0 else width, width) for i in range(layers)
        )
        self.output = nn.Linear(width, 1)
        with torch.no_grad():
            self.start.weight.normal_(0.0, code**-0.5)
            self.output.weight.normal_(0.0, math.sqrt(1.0 / width))
            self.output.bias.zero_()

    def structure(self) -> dict[str, Any]:
        """Arguments that rebuild the module."""
        return {
            "window": self.window,
            "code": self.code,
            "width": self.width,
            "layers": len(self.cells),
        }

    def forward(self, code: Tensor) -> Tensor:
        """Waveforms (B, N), in units of the recording's standard deviation."""
        states = self._first_states(code)
        first = self.cells[0]
        assert isinstance(first, LSTMCell)
        driven = first.input(code)
        outputs = []
        for _ in range(self.window):
            below = None
            for i, cell in enumerate(self.cells):
                assert isinstance(cell, LSTMCell)
                into = driven if below is None else cell.input(below)
                states[i] = cell(into, *states[i])
                below = states[i][0]
            outputs.append(below)
        return self.output(torch.stack(outputs, 1)).squeeze(-1)

    def fake(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """The same by the fused kernel, which has a backward derivative alone."""
        h, c = (
            torch.stack(part) for part in zip(*self._first_states(code), strict=True)
        )
        weights = []
        for cell in self.cells:
            assert isinstance(cell, LSTMCell)
            bias = cell.input.bias
            weights += [cell.input.weight, cell.recurrent.weight]
            weights += [bias, torch.zeros_like(bias)]
        inputs = code.unsqueeze(1).expand(-1, self.window, -1)
        # Many devices have no such kernel for bfloat16.
        with torch.autocast(inputs.device.type, enabled=False):
            states, _, _ = torch.lstm(
                inputs,
                [h.to(inputs.dtype), c.to(inputs.dtype)],
                weights,
                has_biases=True,
                num_layers=len(self.cells),
                dropout=0.0,
                train=self.training,
                bidirectional=False,
                batch_first=True,
            )
        waveform = self.output(states).squeeze(-1)
        return waveform, self.view(waveform)

    def _first_states(self, code: Tensor) -> list[tuple[Tensor, ...]]:
        """State h and memory c (B, H) of each layer before the first sample."""
        pairs = torch.tanh(self.start(code)).chunk(len(self.cells), -1)
        return [pair.chunk(2, -1) for pair in pairs]
