"""A run: its recipe and folder, opening one again, and the baselines that it is compared with."""

from purifiers.runs.comparison import own_classifier, prepare_baselines
from purifiers.runs.layout import (
    CACHE,
    CHECKPOINTS,
    CLASSES_FILE,
    LATENT,
    RECIPE_FILE,
    RUN_FILES,
    STATE_FILE,
    STUDENTS,
    TEACHERS,
    Run,
    student_configs,
)
from purifiers.runs.opening import is_run, open_defended, open_run, open_weights, recipe_of

__all__ = [
    "CACHE",
    "CHECKPOINTS",
    "CLASSES_FILE",
    "LATENT",
    "RECIPE_FILE",
    "RUN_FILES",
    "STATE_FILE",
    "STUDENTS",
    "TEACHERS",
    "Run",
    "is_run",
    "open_defended",
    "open_run",
    "open_weights",
    "own_classifier",
    "prepare_baselines",
    "recipe_of",
    "student_configs",
]
