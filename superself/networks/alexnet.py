"""AlexNetMaps: AlexNet with batch norm as a fully convolutional network."""

from __future__ import annotations

from torch import Tensor, nn

SMALLEST = 15  # pixels that leave something for each of the three poolings, with either first convolution


class AlexNetMaps(nn.Module):
    """The five convolutions of AlexNet, each followed by batch norm, for images of any size from 15 x 15 pixels on.

    ``before_relu`` gives the fifth convolution's maps before ReLU and pooling. These have both signs, which suits clustering:
    DeepCluster too computes the features that it clusters without their last ReLU.

    Source: Krizhevsky et al., AlexNet, 2012; with batch norm and without groups as in Caron et al., DeepCluster,
        arXiv:1807.05520.
    Deviations: no fully connected layers, so that every image size fits and the features are maps.

    Args:
        in_channels: channels of the images.

    Shape:
        (B, C, H, W) -> (B, 256, h, w): 6 x 6 for 224 x 224, 3 x 3 for 32 x 32 with a 3 x 3 stem.

    Raises:
        ValueError: at a call with images that have a side below 15 pixels.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (after, kernel, stride, padding) in enumerate(
            ((96, 11, 4, 2), (256, 5, 1, 2), (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1)), 1
        ):
            layers += [nn.Conv2d(in_channels, after, kernel, stride, padding, bias=False), nn.BatchNorm2d(after)]
            if number < 5:
                layers.append(nn.ReLU(inplace=True))
            if number in (1, 2):
                layers.append(nn.MaxPool2d(3, 2))
            in_channels = after
        self.features = nn.Sequential(*layers)
        self.last = nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2))  # not in place: ``before_relu`` may be used as well
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def before_relu(self, images: Tensor) -> Tensor:
        """The maps (B, 256, h, w) of the fifth convolution after batch norm, before ReLU and the last pooling."""
        if min(images.shape[2:]) < SMALLEST:
            raise ValueError(
                f"alexnet_bn needs images of at least {SMALLEST} x {SMALLEST} pixels, got {images.shape[2]} x "
                f"{images.shape[3]}; pass a larger image_size or another backbone."
            )
        return self.features(images)

    def forward(self, images: Tensor) -> Tensor:
        """The feature maps (B, 256, h, w) of images (B, C, H, W)."""
        return self.last(self.before_relu(images))
