"""EfficientFeatures: the default backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from torch import nn

from superself.networks.norms import use_layer_norm


class EfficientFeatures(nn.Module):
    """The convolutions of EfficientNet, narrowed to 64 channels and pooled to 7 x 7: 3136 features at any image size.

    With ``norm="layer"`` the feature of an image does not depend on the other images in the batch, not even in train mode;
    only drop connect remains random there, drawn independently for each image.

    Source: Tan & Le, EfficientNet, arXiv:1905.11946, as implemented in efficientnet-pytorch.
    Deviations: bottleneck and 7 x 7 pooling in place of the classifier; running averages of batch norm move by 0.1 a
        step as usual in torch, not by 0.01, so that they are accurate after short runs.

    Args:
        in_channels: channels of the images.
        name: which EfficientNet, "efficientnet-b0" to "efficientnet-b8".
        norm: "batch", or "layer" for a layer norm over (C, H, W) of each image.
        drop_connect: probability that the last residual block is skipped during training; it is lower for earlier blocks.

    Shape:
        (B, C, H, W) -> (B, 3136).

    Raises:
        ValueError: if ``name`` or ``norm`` is unknown.
    """

    def __init__(
        self, in_channels: int = 3, name: str = "efficientnet-b0", norm: str = "batch", drop_connect: float = 0.2
    ) -> None:
        super().__init__()
        if norm not in ("batch", "layer"):
            raise ValueError(f"norm={norm!r} is unknown; pass 'batch' or 'layer'.")
        self.efficientnet = EfficientNet.from_name(
            name,
            in_channels=in_channels,
            image_size=None,  # pads according to the image, so that any size fits
            include_top=False,
            drop_connect_rate=drop_connect,
            batch_norm_momentum=0.9,
        )
        self.efficientnet.set_swish(memory_efficient=False)  # torch's SiLU saves memory too
        self.bottleneck = nn.Conv2d(self.efficientnet._conv_head.out_channels, 64, kernel_size=1)
        if norm == "layer":
            use_layer_norm(self)

    def feature_maps(self, images: torch.Tensor) -> torch.Tensor:
        """The features as maps (B, 64, 7, 7)."""
        maps = self.bottleneck(self.efficientnet.extract_features(images))  # (B, 64, h, w)
        return F.adaptive_avg_pool2d(maps, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The features (B, 3136) of images (B, C, H, W)."""
        return self.feature_maps(images).flatten(1)
