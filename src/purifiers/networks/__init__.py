"""Our own networks: the purifier's autoencoder, and classifiers to protect."""

from purifiers.networks.cae import CAE
from purifiers.networks.resnet import ResNet

__all__ = ["CAE", "ResNet"]
