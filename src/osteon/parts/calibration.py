"""Calibration: a few samples run through a network once, and what every layer saw of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.parts.real_tokens import RealTokens
from osteon.parts.reparam import Layer
from osteon.parts.types import DataSpec


@dataclass
class Moments:
    """Sums over everything a layer took in and put out, one row a token, pixel or sample; padding is left out.

    Args:
        count: rows seen.
        input_sum: (d,) float64.
        input_outer: (d, d) float64, sum of x x^T; a convolution's rows are its patches, d = C kh kw / groups.
        output_sum: (o,) float64.
        output_outer: (o, o) float64.
    """

    count: int
    input_sum: Tensor
    input_outer: Tensor
    output_sum: Tensor
    output_outer: Tensor

    @property
    def second_moment(self) -> Tensor:
        """Mean of x x^T over the inputs, (d, d)."""
        return self.input_outer / max(1, self.count)

    @property
    def covariance(self) -> Tensor:
        """Covariance of the inputs, (d, d)."""
        mean = self.input_sum / max(1, self.count)
        return self.second_moment - mean[:, None] * mean

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Take in rows (n, d) and (n, o)."""
        x, y = inputs.double(), outputs.double()
        self.count += len(x)
        self.input_sum += x.sum(0)
        self.input_outer += x.T @ x
        self.output_sum += y.sum(0)
        self.output_outer += y.T @ y


class Calibration:
    """Samples a compression may look at; their labels only where a method says so.

    Args:
        images: (rows) -> normalised samples (n, C, *extent), as the network expects them.
        count: how many samples there are.
        spec: what they look like.
        batch_size: samples a forward pass.
        stored: (rows) -> the samples as they are stored, for training on views, under the name of their
            modality, and ``label`` where there are labels. None: nothing can be trained.
        labels: (count,) or (count, K), or None.
    """

    def __init__(self, images: Callable[[np.ndarray], Tensor], count: int, spec: DataSpec, *, batch_size: int = 64,
                 stored: Callable[[np.ndarray], Mapping[str, Tensor]] | None = None,
                 labels: np.ndarray | None = None) -> None:
        if count < 1 or batch_size < 1:
            raise UsageError(f"Calibration needs samples; there are {count}.", where="calibration")
        self.images, self.count, self.spec, self.batch_size = images, count, spec, batch_size
        self.stored, self.labels = stored, labels
        #: classifier on the network's pooled features, where the run has one
        self.head: nn.Module | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return self.count

    def need(self, count: int, why: str) -> None:
        """Insist on a number of samples.

        Raises:
            UsageError: there are fewer.
        """
        if self.count < count:
            raise UsageError(f"The calibration set is too small: {self.count} samples, {why} takes {count}.",
                             where="calibration", fix="Give more data, or raise --set calibration.")

    def batches(self) -> Iterator[Tensor]:
        """All samples once, in order, normalised: (b, C, *extent)."""
        for start in range(0, self.count, self.batch_size):
            yield self.images(np.arange(start, min(start + self.batch_size, self.count)))

    @torch.no_grad()
    def moments(self, network: nn.Module, layers: Mapping[str, Layer]) -> dict[str, Moments]:
        """One pass over all samples; sums over the inputs and outputs of the layers, by name.

        Args:
            network: runs in evaluation mode; what it was in is put back.
            layers: linear layers and convolutions without groups, as found in ``network``.

        Raises:
            UsageError: a layer that never ran, or a convolution with groups.
        """
        found: dict[str, Moments] = {}
        grouped = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
        if grouped:
            raise UsageError("Moments of convolutions with groups are not collected.", where=grouped[0])
        real: list[RealTokens] = []
        handles = [layer.register_forward_hook(_watch(name, found, real)) for name, layer in layers.items()]
        training, device = network.training, next(network.parameters()).device
        network.eval()
        try:
            for batch in self.batches():
                real[:] = [RealTokens(network, batch.to(device))]
                network(batch.to(device))
        finally:
            for handle in handles:
                handle.remove()
            network.train(training)
        silent = [name for name in layers if name not in found]
        if silent:
            raise UsageError("A layer took no part in the network's forward pass.", where=silent[0])
        return found

    @torch.no_grad()
    def features(self, network: nn.Module) -> Tensor:
        """Pooled features of every sample in order, (count, D) float32 on the CPU."""
        device = next(iter([*network.parameters(), *network.buffers()])).device
        training = network.training
        network.eval()
        out = torch.cat([network(batch.to(device)).pooled.float().cpu() for batch in self.batches()])
        network.train(training)
        return out


def _watch(name: str, found: dict[str, Moments], real: list[RealTokens]) -> Callable[..., None]:
    def hook(layer: Layer, args: tuple[Tensor, ...], output: Tensor) -> None:
        x, y = _rows(layer, args[0], real[0]), _columns(layer, output, real[0])
        if name not in found:
            d, o = x.shape[1], y.shape[1]
            shapes = ((d,), (d, d), (o,), (o, o))
            found[name] = Moments(0, *(torch.zeros(s, dtype=torch.float64, device=x.device) for s in shapes))
        found[name].add(x, y)
    return hook


def _rows(layer: Layer, x: Tensor, real: RealTokens) -> Tensor:
    """Inputs as rows that the layer's flattened weight multiplies."""
    if isinstance(layer, nn.Linear):
        return real.take(x)
    pad = layer.padding
    assert not isinstance(pad, str), "numbers: checked by whoever chose the layer"
    patches = F.unfold(x, layer.kernel_size, layer.dilation, pad, layer.stride)  # type: ignore[arg-type]
    return patches.transpose(1, 2).flatten(0, 1)


def _columns(layer: Layer, y: Tensor, real: RealTokens) -> Tensor:
    return real.take(y) if isinstance(layer, nn.Linear) else y.flatten(2).transpose(1, 2).flatten(0, 1)
