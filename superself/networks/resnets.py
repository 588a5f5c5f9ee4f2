"""ResNets that torchvision does not have: any width, ResNet-9, and standardised weights with group norm."""

from __future__ import annotations

import math

from torch import Tensor, nn

from superself.networks.norms import StandardizedConv2d

GROUPS = 32  # of group norm; fewer where they do not divide the channels
LAYERS = {  # blocks in each of the four stages, and whether they are bottlenecks
    9: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
RESNETS = {f"{kind}resnet{depth}": (depth, bool(kind)) for kind in ("", "ws_") for depth in LAYERS}  # name -> arguments


class ResNet(nn.Module):
    """A ResNet of any depth of ``LAYERS`` and any width, without classifier; parameters have torchvision's names.

    With ``standardized`` the weights of all convolutions are standardised and group norm takes the place of batch norm, so
    that the features of an image do not depend on the other images in the batch, not even in train mode.

    Source: He et al., arXiv:1512.03385; weight standardisation: Qiao et al., arXiv:1903.10520; group norm: Wu & He,
        arXiv:1803.08494.
    Deviations: bottlenecks stride in their 3 x 3 convolution, as in torchvision.

    Args:
        depth: 9, 18, 34, 50, 101 or 152.
        standardized: standardise weights and use group norm.
        width: multiplies the number of channels of every layer; 1 has 64 in the first.
        in_channels: channels of the images.

    Shape:
        (B, C, H, W) -> (B, D) with D = 512 * width, or 2048 * width from depth 50 on.

    Raises:
        ValueError: if ``width`` leaves no channels.
    """

    def __init__(self, depth: int = 9, standardized: bool = False, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        layers, bottleneck = LAYERS[depth]
        planes = int(64 * width) if math.isfinite(width) else 0
        if planes < 1:
            raise ValueError(f"width={width:g} leaves no channels of the 64 in the first layer; pass at least 1/64.")
        self.conv1 = _conv(standardized, in_channels, planes, 7, 2)
        self.bn1 = _norm(standardized, planes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = planes
        for stage, count in enumerate(layers):
            blocks = []
            for place in range(count):
                stride = 2 if stage and not place else 1
                blocks.append(Block(channels, planes << stage, stride, bottleneck, standardized))
                channels = (planes << stage) * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def feature_maps(self, images: Tensor) -> Tensor:
        """The maps (B, D, h, w) before they are pooled."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(maps))))

    def forward(self, images: Tensor) -> Tensor:
        """The features (B, D) of images (B, C, H, W)."""
        return self.feature_maps(images).mean((2, 3))


class Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, or a bottleneck of 1 x 1, 3 x 3 and 1 x 1 with four times the channels.

    Args:
        channels: of the input.
        planes: of the 3 x 3 convolutions.
        stride: of the (first) 3 x 3 convolution.
        bottleneck: which of the two.
        standardized: standardise weights and use group norm.

    Shape:
        (B, channels, H, W) -> (B, planes or 4 * planes, H / stride, W / stride).
    """

    def __init__(self, channels: int, planes: int, stride: int, bottleneck: bool, standardized: bool) -> None:
        super().__init__()
        out = 4 * planes if bottleneck else planes
        kernels = ((planes, 1, 1), (planes, 3, stride), (out, 1, 1)) if bottleneck else ((out, 3, stride), (out, 3, 1))
        self.count, before = len(kernels), channels
        for number, (after, kernel, step) in enumerate(kernels, 1):
            setattr(self, f"conv{number}", _conv(standardized, before, after, kernel, step))
            setattr(self, f"bn{number}", _norm(standardized, after))
            before = after
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(_conv(standardized, channels, out, 1, stride), _norm(standardized, out))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the input and what the convolutions make of it, after a ReLU."""
        y = x
        for number in range(1, self.count + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = self.relu(y) if number < self.count else y
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _conv(standardized: bool, before: int, after: int, kernel: int, stride: int) -> nn.Conv2d:
    kind = StandardizedConv2d if standardized else nn.Conv2d
    return kind(before, after, kernel, stride, kernel // 2, bias=False)


def _norm(standardized: bool, channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels) if standardized else nn.BatchNorm2d(channels)
