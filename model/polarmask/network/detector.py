"""PolarMask: the network, from images to raw predictions. `losses` compares them with targets."""

from torch import Tensor, nn

from polarmask.config.settings import ModelConfig
from polarmask.network.backbone import Pyramid
from polarmask.network.head import PolarHead, Predictions


class PolarMask(nn.Module):
    """Anchor-free instance segmentation by rays (Xie et al., CVPR 2020).

    forward: images (B, 3, H, W), float, normalised, H and W multiples of the coarsest stride ->
    `Predictions`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.pyramid = Pyramid(config)
        self.head = PolarHead(config)

    def forward(self, image_B3HW: Tensor) -> Predictions:
        """Return raw predictions at all locations."""
        predictions: Predictions = self.head(self.pyramid(image_B3HW))
        return predictions
