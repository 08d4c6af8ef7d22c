"""Other people's purifiers, to compare with: NRP, SOAP, classical transformations, and wrappers around any purifier."""

from purifiers.baselines.classical import JPEG, Adaptive, BitDepth, Blend, Median, Noisy, Nothing, Shrink, TotalVariation
from purifiers.baselines.nrp import NRP
from purifiers.baselines.soap import SOAP

__all__ = ["JPEG", "NRP", "SOAP", "Adaptive", "BitDepth", "Blend", "Median", "Noisy", "Nothing", "Shrink", "TotalVariation"]
