"""AlexNet.

Papers: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012, in the one-tower
form of Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, https://arxiv.org/abs/1404.5997.
State-dict compatible with torchvision's `alexnet`: without the paper's local response normalisation, and with an adaptive average
pool before the classifier, so that other image sizes than 224x224 will do.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastcnn.models.layers import check_input


class AlexNet(nn.Module):
    """AlexNet for (N, 3, 224, 224) images; any size from 63x63 will do. 61,100,840 parameters for 1000 classes.

    Returns logits (N, num_classes). Raises InputError for another number of channels or a smaller image.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            # N x 3 x 224 x 224
            nn.Conv2d(3, 64, 11, stride=4, padding=2),  # N x 64 x 55 x 55
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),  # N x 64 x 27 x 27
            nn.Conv2d(64, 192, 5, padding=2),  # N x 192 x 27 x 27
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),  # N x 192 x 13 x 13
            nn.Conv2d(192, 384, 3, padding=1),  # N x 384 x 13 x 13
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),  # N x 256 x 13 x 13
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),  # N x 256 x 13 x 13
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),  # N x 256 x 6 x 6
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        check_input(x, "AlexNet", min_size=63)
        x = self.features(x)  # N x 256 x 6 x 6
        x = self.avgpool(x).flatten(1)  # N x 9216
        return self.classifier(x)  # N x num_classes


def alexnet(num_classes: int = 1000, dropout: float = 0.5) -> AlexNet:
    """AlexNet with new random weights; see AlexNet."""
    return AlexNet(num_classes, dropout)
