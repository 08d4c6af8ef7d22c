"""Other people's purifiers, to compare with: NRP, SOAP, classical transformations, and wrappers around any purifier."""

from purifiers.baselines.classical import JPEG, BitDepth, Median, Nothing, Shrink, TotalVariation
from purifiers.baselines.nrp import NRP
from purifiers.baselines.soap import SOAP
from purifiers.baselines.wrappers import Adaptive, Blend, Noisy

__all__ = ["JPEG", "NRP", "SOAP", "Adaptive", "BitDepth", "Blend", "Median", "Noisy", "Nothing", "Shrink", "TotalVariation"]
