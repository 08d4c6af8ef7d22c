"""The tables and the page of a certification, from its records alone."""

from pathlib import Path

from purifiers.console import duration
from purifiers.evaluation.certificate import Certificate
from purifiers.reports.figures import certificate_figure, save_figure
from purifiers.reports.run_report import machine_and_versions
from purifiers.reports.tables import Table, percent
from purifiers.storage import write_text

PAGE, FIGURE = "certificate.md", "figures/certificate.svg"
NOTES = (
    "What is certified is the smoothed classifier: the class that wins among many noisy copies of an image "
    "(`purifiers.evaluation.certify.predict`). One pass through purifier and classifier has no certificate.",
    "It speaks of L2 perturbations, by whoever and however made: also by an attacker who knows everything. An L-inf "
    "perturbation of epsilon may be as long as epsilon times the root of the number of values of an image.",
    "An image's certificate is wrong with probability alpha at most, over the noise; the 95 % intervals say what the choice "
    "of images leaves open. The theorem is one of real numbers: what rounding may do is not covered.",
)


def certificate_tables(certificate: Certificate) -> list[Table]:
    """Certified accuracy by radius, and what goes with it: a column for each model."""
    names = [model.name for model in certificate.models]
    header = ["L2 radius", *(column for name in names for column in (name, "95 % interval"))]
    rows = [
        [
            f"{levels[0].radius:.4g}",
            *(
                cell
                for level in levels
                for cell in (percent(level.accuracy), f"{percent(level.ci95[0])} to {percent(level.ci95[1])}")
            ),
        ]
        for levels in zip(*(model.certified_accuracy for model in certificate.models), strict=True)
    ]
    caption = (
        f"Share in % of {certificate.n_images:,} test images of {certificate.dataset} that are right, and certainly stay so "
        f"under every perturbation that is shorter than the radius. Purifier {certificate.purifier}, classifier "
        f"{certificate.classifier}, noise sigma {certificate.sigma:g}; {certificate.n0:,} + {certificate.n:,} noisy copies "
        f"of an image, alpha {certificate.alpha:g}: so many certify {certificate.largest_radius:.3f} at most."
    )
    about = {
        "accuracy without perturbation": [percent(model.natural_accuracy) for model in certificate.models],
        "abstained": [percent(model.abstention) for model in certificate.models],
        "average certified radius": [f"{model.average_radius:.3f}" for model in certificate.models],
        "time": [duration(model.seconds) for model in certificate.models],
    }
    return [
        Table("Certified accuracy by radius", caption, header, rows, details=("95 % interval",)),
        Table(
            "The smoothed classifiers",
            "Accuracy and abstentions in %. A radius counts as 0 where the class is wrong or there is none.",
            ["", *names],
            [[name, *cells] for name, cells in about.items()],
        ),
    ]


def write_certificate(certificate: Certificate, folder: Path) -> Path:
    """Write ``certificate.json``, ``certificate.md`` and a figure into ``folder``; returns the page's path."""
    certificate.write(folder)
    save_figure(certificate_figure(certificate), folder / FIGURE)
    how = {
        "recipe": f"{certificate.recipe['name']}, seed {certificate.seed}",
        **machine_and_versions(certificate.hardware, certificate.versions),
        "method": "CERTIFY of Cohen, Rosenfeld and Kolter (2019); noisy images are clipped to [0,1] before the purifier",
    }
    parts = [
        f"# Certified robustness of {certificate.purifier}",
        f"![certificate]({FIGURE})\n\nCertified accuracy against the radius; dotted: the largest that so many copies certify.",
        *(table.markdown() for table in certificate_tables(certificate)),
        "## Read this before you quote a number\n\n" + "\n".join(f"- {note}" for note in NOTES),
        "## How it was run\n\n" + "\n".join(f"- {name}: {text}" for name, text in how.items()),
    ]
    write_text(folder / PAGE, "\n\n".join(part.strip() for part in parts) + "\n")
    return folder / PAGE
