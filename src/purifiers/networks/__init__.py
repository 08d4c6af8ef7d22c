"""The purifier's autoencoder, classifiers to protect, and the base class of all networks that are saved by name."""

from purifiers.networks.cae import CAE
from purifiers.networks.network import Network
from purifiers.networks.resnet import ResNet

__all__ = ["CAE", "Network", "ResNet"]
