"""The figures, from results and images: accuracy by attack, the paper's figure 5, training curves, audits, certificates."""

import math
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, and none is opened

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.certify import Certificate
from purifiers.evaluation.evaluate import Examples
from purifiers.evaluation.records import Results
from purifiers.reports.render import title_of
from purifiers.reports.tables import select, through_purifier
from purifiers.storage import atomic_path

BLUE, ORANGE, GREEN, RED, GREY = "#2563eb", "#d97706", "#059669", "#dc2626", "#94a3b8"
AMPLIFY = 5
_CHART = matplotlib.rc_context(
    {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "grid.alpha": 0.25}
)
_NOT_LOSSES = ("epoch", "learning_rate", "images_per_second", "flops_per_image", "seconds", "robust_accuracy")
"""Keys of an epoch's record."""


def save_figures(results: Results, examples: Examples, folder: Path) -> list[Path]:
    """Draw every figure into ``folder`` as SVG charts and a PNG picture; returns the files in the report's order."""
    figures = {"examples.png": examples_figure(examples), "accuracy.svg": accuracy_figure(results)}
    figures["training.svg"] = training_figure(results)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return [folder / name for name in figures]


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path`` in the format of its suffix, and close it."""
    # Without a date and with fixed ids, equal results give equal files.
    with atomic_path(path) as temporary, plt.rc_context({"svg.hashsalt": "purifiers"}):
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(temporary, bbox_inches="tight", dpi=160, metadata=metadata)
    plt.close(figure)


@_CHART
def accuracy_figure(results: Results) -> Figure:
    """Bars for each attack: undefended, purified (blind), and purified under the lowest of the other views."""
    blind, others = select(results), through_purifier(results)
    lowest = {r.attack: r.accuracy for r in sorted(others, key=lambda record: record.accuracy, reverse=True)}
    names = list(blind)
    series = [
        ("no purifier", GREY, {name: blind[name].accuracy_undefended for name in names}),
        ("purified, attacker does not know the purifier", BLUE, {name: blind[name].accuracy for name in names}),
        ("purified, attacker knows or queries the purifier", ORANGE, {n: lowest[n] for n in names if n in lowest}),
    ]
    width = 0.8 / len(series)
    figure, axes = plt.subplots(figsize=(8.5, 3.8), layout="constrained")
    for offset, (label, colour, values) in enumerate(series):
        places = [names.index(name) + (offset - 1) * width for name in values]
        bars = axes.bar(places, [100 * value for value in values.values()], width, label=label, color=colour)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.set_xticks(range(len(names)), [title_of(name).replace(", ", "\n", 1) for name in names])
    axes.set(ylabel="accuracy (%)", ylim=(0, 109))
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14))
    return figure


@_CHART
def certificate_figure(certificate: Certificate) -> Figure:
    """Certified accuracy against radius, a step for each image, with the purifier and without."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for model, colour in zip(certificate.models, (BLUE, GREY), strict=True):
        radii = sorted(image.radius for image in model.images if image.predicted == image.label)
        shares = [100 * (len(radii) - i) / len(model.images) for i in range(len(radii) + 1)]
        axes.stairs(shares, [0.0, *radii, 1.08 * certificate.largest_radius], color=colour, linewidth=1.8, label=model.name)
    axes.axvline(certificate.largest_radius, color=GREY, linewidth=1, linestyle=":")
    axes.set(xlim=(0, 1.08 * certificate.largest_radius), ylim=(0, 100), xlabel="L2 radius", ylabel="certified accuracy (%)")
    axes.grid(True)
    axes.legend()
    return figure


@_CHART
def audit_figure(audit: Audit) -> Figure:
    """A row for each purifier: clean accuracy, and the worst cases in L-inf by what the attacker knows."""
    names = audit.purifiers
    figure, axes = plt.subplots(figsize=(7.2, 1.3 + 0.3 * len(names)), layout="constrained")
    axes.plot([100 * audit.clean(name).accuracy for name in names], range(len(names)), "o", color=BLUE, label="clean")
    for group, mark in {"gray-box": "s", "transfer": "^", "black-box": "D"}.items():
        records = [audit.worst(name, "linf", group) for name in names]
        shares = [100 * one.accuracy if one else np.nan for one in records]
        axes.plot(shares, range(len(names)), mark, color="none", markeredgecolor=GREY, markersize=6, label=group)
    axes.plot([], [], "o", color=ORANGE, label="all attacks")
    for row, name in enumerate(names):
        if (worst := audit.worst(name)) is not None:
            margins = [[abs(100 * (worst.accuracy - end))] for end in worst.ci95]
            axes.errorbar(100 * worst.accuracy, row, xerr=margins, fmt="o", color=ORANGE, capsize=3)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlim=(-3, 103), ylim=(len(names) - 0.4, -0.6), xlabel="accuracy (%), L-inf")
    axes.grid(True)
    figure.legend(loc="outside upper center", ncols=5, fontsize=8)
    return figure


def examples_figure(examples: Examples) -> Figure:
    """The paper's figure 5 and the differences: original, adversarial, purified, and what each step changed."""
    original, adversarial, purified = examples.original, examples.adversarial, examples.purified
    rows = [
        ("original", original.images, original),
        (f"adversarial\n({examples.attack})", adversarial.images, adversarial),
        ("purified", purified.images, purified),
        (f"attack's change\n(x {AMPLIFY})", (adversarial.images - original.images) * AMPLIFY + 0.5, None),
        (f"remaining change\n(x {AMPLIFY})", (purified.images - original.images) * AMPLIFY + 0.5, None),
    ]
    count = len(original.images)
    figure, grid = plt.subplots(len(rows), count, figsize=(1.05 * count + 1, 1.45 * len(rows)), squeeze=False)
    for axes_row, (title, images, row) in zip(grid, rows, strict=True):
        axes_row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        for i, axes in enumerate(axes_row):
            axes.imshow(images[i].clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row is not None:
                decibels = "" if row.psnr is None else f"\n{row.psnr[i]:.1f} dB"
                colour = GREEN if row.correct[i] else RED
                axes.set_xlabel(row.classes[i] + decibels, fontsize=8, color=colour, labelpad=2)
    figure.subplots_adjust(wspace=0.06, hspace=0.4)
    return figure


@matplotlib.rc_context({"legend.frameon": False, "grid.alpha": 0.25})
def training_figure(results: Results) -> Figure:
    """Loss against epoch for every stage, log scale, one panel each."""
    stages = {name: history for name, history in results.training.items() if history}
    columns = min(3, max(1, len(stages)))
    rows = max(1, math.ceil(len(stages) / columns))
    figure, grid = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.2 * rows), squeeze=False, layout="constrained")
    for axes in grid.flat[len(stages) :]:
        axes.set_axis_off()
    for axes, (name, history) in zip(grid.flat, stages.items(), strict=False):
        # A loss that is always 0 cannot be drawn on a log scale.
        losses = [key for key in history[0] if key not in _NOT_LOSSES and any(record[key] > 0 for record in history)]
        epochs = [record["epoch"] for record in history]
        marker = "o" if len(epochs) == 1 else None
        for loss, colour in zip(losses, cycle((BLUE, ORANGE, GREEN, RED, GREY)), strict=False):
            axes.plot(epochs, [record[loss] for record in history], color=colour, label=loss, linewidth=1.4, marker=marker)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=6))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=6))
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(True)
        if losses:
            axes.legend(fontsize=7)
    return figure
