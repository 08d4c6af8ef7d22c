"""The tables and the page of a certification, from its records."""

from pathlib import Path

from purifiers.console import duration
from purifiers.evaluation.certify import Certificate
from purifiers.reports.figures import certificate_figure, save_figure
from purifiers.reports.render import Table, page, percent, span, text
from purifiers.storage import write_text

PAGE, FIGURE = "certificate.md", "figures/certificate.svg"


def certificate_tables(certificate: Certificate) -> list[Table]:
    """Certified accuracy by radius, and the models' other numbers: a column for each model."""
    models = certificate.models
    rows = [
        [f"{levels[0].radius:.4g}", *(cell for level in levels for cell in (percent(level.accuracy), span(level.ci95)))]
        for levels in zip(*(model.certified_accuracy for model in models), strict=True)
    ]
    header = ["L2 radius", *(column for model in models for column in (model.name, "95 % interval"))]
    about = [
        ["accuracy without perturbation", *(percent(model.natural_accuracy) for model in models)],
        ["abstained", *(percent(model.abstention) for model in models)],
        ["average certified radius", *(f"{model.average_radius:.3f}" for model in models)],
        ["time", *(duration(model.seconds) for model in models)],
    ]
    return [
        Table("Certified accuracy by radius", text("certified", one=certificate), header, rows, details=("95 % interval",)),
        Table("The smoothed classifiers", text("smoothed"), ["", *(model.name for model in models)], about),
    ]


def certificate_page(certificate: Certificate) -> str:
    """The page in Markdown; its figure is at ``FIGURE``."""
    return page("certificate.md.j2", one=certificate, figure=FIGURE, tables=certificate_tables(certificate))


def write_certificate(certificate: Certificate, folder: Path) -> Path:
    """Write ``certificate.json``, ``certificate.md`` and a figure into ``folder``; returns the page's path."""
    certificate.write(folder)
    save_figure(certificate_figure(certificate), folder / FIGURE)
    write_text(folder / PAGE, certificate_page(certificate))
    return folder / PAGE
