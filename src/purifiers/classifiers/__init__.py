"""Classifiers of the user: opened from whatever form they come in, adapted to images in [0,1], and checked."""

from purifiers.weights import HUB

CLASSIFIER_FORMS = (
    "module:function, a .safetensors file with weights of the recipe's network, a torch.export file (.pt2), a folder saved by "
    f"this library or by Hugging Face transformers, {HUB}owner/name of the Hugging Face hub, or a shipped name"
)
"""What names a classifier: the one list for the option's help, the recipe and the error."""
