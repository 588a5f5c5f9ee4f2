"""Normalisation layers: layer norm of maps, batch renormalisation, and linear layers with standardised weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superself.basics.validate import require_count

STANDARDIZED_EPS = 1e-5  # added to the standard deviation of weights


class LayerNorm2d(nn.GroupNorm):
    """Layer norm of feature maps: mean and variance over (C, H, W) of each image, scale and shift per channel.

    The output for an image does not depend on the other images in the batch, not even in train mode. It equals group norm
    with one group.

    Source: Ba et al., Layer Normalization, arXiv:1607.06450; as group norm: Wu & He, arXiv:1803.08494.
    Deviations: one scale and shift per channel, not per position, so that any image size fits.

    Args:
        channels: C of the maps.
        eps: added to the variance.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(num_groups=1, num_channels=channels, eps=eps)


def use_layer_norm(network: nn.Module) -> nn.Module:
    """Replaces every ``nn.BatchNorm2d`` inside a network by a new LayerNorm2d, in place, and returns the network.

    The activation that timm's batch norms contain is kept after the new norm.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                norm = LayerNorm2d(child.num_features, eps=child.eps)
                norm.to(next((p.device for p in (*child.parameters(), *child.buffers())), "cpu"))
                after = [getattr(child, held) for held in ("drop", "act") if hasattr(child, held)]
                setattr(module, name, nn.Sequential(norm, *after) if after else norm)
    return network


class BatchRenorm1d(nn.BatchNorm1d):
    """Batch norm whose output in train mode is corrected towards that of the running statistics.

    y = (x - mu_B) / sigma_B * r + d, then scale and shift, with r = clip(sigma_B / sigma, 1 / r_max, r_max) and
    d = clip((mu_B - mu) / sigma, -d_max, d_max), through which no gradient flows. Within the limits this equals
    (x - mu) / sigma, so that an image depends less on the others in its batch. The limits grow linearly from r_max = 1,
    d_max = 0, which is batch norm, because the running statistics mean little at first.

    Source: Ioffe, Batch Renormalization, arXiv:1702.03275, Algorithm 1.
    Deviations: the running average is of the (biased) variance, where the paper averages the standard deviation; the limits
        grow from the first step on, where the paper trains with batch norm for 5,000 steps first.
    Args:
        num_features: D.
        eps: added to variances.
        momentum: fraction of the NEW statistics that enters the running ones, as in ``nn.BatchNorm1d``.
        affine: learn scale and shift.
        r_max: limit of r, 3 in the paper.
        d_max: limit of d, 5 in the paper.
        warmup: steps until the limits are reached; the paper takes up to 40,000.
    Shape:
        (B, D) -> (B, D), in float32.
    Raises:
        ValueError: if ``warmup`` is below 1.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 1000,
    ) -> None:
        require_count("warmup", warmup, "is the number of steps until the limits are reached")
        super().__init__(num_features, eps, momentum, affine)
        self.r_max, self.d_max, self.warmup = r_max, d_max, warmup

    def forward(self, x: Tensor) -> Tensor:
        """The normalised batch; in train mode the running statistics move too."""
        if not self.training or not self.track_running_stats:
            return super().forward(x.float())
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            variance, mean = self._moments(x)  # (D,)
            std = (variance + self.eps).sqrt()
            with torch.no_grad():
                share = (self.num_batches_tracked / self.warmup).clamp(max=1)
                r_max, d_max = 1 + share * (self.r_max - 1), share * self.d_max
                running_std = (self.running_var + self.eps).sqrt()
                r = torch.clamp(std / running_std, 1 / r_max, r_max)
                d = torch.clamp((mean - self.running_mean) / running_std, -d_max, d_max)
                self.num_batches_tracked.add_(1)
                weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, weight)
                self.running_var.lerp_(variance, weight)
            y = (x - mean) / std * r + d
            return y if self.weight is None else y * self.weight + self.bias

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The biased variance and the mean of each feature (D,) in the batch."""
        return torch.var_mean(x, dim=0, correction=0)


class StandardizedLinear(nn.Linear):
    """A linear layer whose weights are standardised: each output's weights have mean 0 and deviation 1.

    Meant to be followed by a norm layer, since the scale of the output is no longer learnt.

    Source: Qiao et al., Weight Standardization, arXiv:1903.10520.
    Deviations: for linear layers, where the paper has convolutions.
    Shape:
        (..., in_features) -> (..., out_features).
    """

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with standardised weights."""
        return F.linear(x, _standardized(self.weight), self.bias)


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose weights are standardised: those of each output channel have mean 0 and deviation 1.

    Meant to be followed by a norm layer, since the scale of the output is no longer learnt.

    Source: Qiao et al., Weight Standardization, arXiv:1903.10520.
    Deviations: none.
    Shape:
        (B, C, H, W) -> (B, C', H', W').
    """

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with standardised weights."""
        return self._conv_forward(x, _standardized(self.weight), self.bias)


def _standardized(weight: Tensor) -> Tensor:
    """Weights (out, ...) with mean 0 and deviation 1 over all axes but the first."""
    std, mean = torch.std_mean(weight, dim=tuple(range(1, weight.ndim)), correction=0, keepdim=True)
    return (weight - mean) / (std + STANDARDIZED_EPS)
