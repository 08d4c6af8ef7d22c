"""The user's classifiers: opened from their various forms, adapted to images in [0,1], and checked."""

from purifiers.weights import HUB

CLASSIFIER_FORMS = (
    "module:function, a .safetensors file with weights of the recipe's network, a torch.export file (.pt2), a folder saved by "
    f"this library or by Hugging Face transformers, {HUB}owner/name of the Hugging Face hub, or a shipped name"
)
"""The forms of a classifier's name, for the option's help, the recipe and the error."""
