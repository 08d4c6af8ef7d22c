"""The page of a certification says what its records say."""

from pathlib import Path

import pytest

from purifiers.evaluation.certify import Certificate, ImageCertificate, summarised
from purifiers.reports.figures import certificate_figure
from purifiers.reports.pages import certificate_tables, write_certificate


@pytest.fixture
def certificate() -> Certificate:
    def model(name: str, radii: list[float]) -> object:
        images = [
            ImageCertificate(label=1, predicted=1 if r else None, radius=r, votes=90, majority=1 if r else None, seconds=30.0)
            for r in radii
        ]
        return summarised(name, images, [0.0, 0.25, 0.5])

    return Certificate(
        dataset="cifar10", classifier="resnet56", purifier="mine", n_images=4, sigma=0.25, n0=100, n=1000, alpha=0.001, seed=7,
        largest_radius=0.6, recipe={"name": "smooth"}, versions={"torch": "2"},
        hardware={"name": "a | machine", "threads": 2, "platform": "x", "device": "cpu"},
        models=[model("purified", [0.5, 0.3, 0.1, 0.0]), model("classifier alone", [0.2, 0.0, 0.0, 0.0])],
    )  # fmt: skip


def test_the_tables_have_a_column_for_each_model(certificate: Certificate) -> None:
    by_radius, smoothed = certificate_tables(certificate)
    assert by_radius.compact().header == ["L2 radius", "purified", "classifier alone"]
    assert by_radius.compact().rows == [["0", "75.00", "25.00"], ["0.25", "50.00", "0.00"], ["0.5", "25.00", "0.00"]]
    assert "4 test images of cifar10" in by_radius.caption
    assert "noise sigma 0.25; 100 + 1,000 noisy copies of an image, alpha 0.001" in by_radius.caption
    assert smoothed.rows == [
        ["accuracy without perturbation", "75.00", "25.00"],
        ["abstained", "25.00", "75.00"],
        ["average certified radius", "0.225", "0.050"],
        ["time", "2 min 00 s", "2 min 00 s"],
    ]


def test_the_figure_steps_down_where_an_image_s_radius_ends(certificate: Certificate) -> None:
    (axes,) = certificate_figure(certificate).axes
    steps = [patch.get_data() for patch in axes.patches]
    assert steps[0].values.tolist() == [75.0, 50.0, 25.0, 0.0]
    assert steps[0].edges.tolist()[:4] == [0.0, 0.1, 0.3, 0.5]
    assert steps[1].values.tolist() == [25.0, 0.0]


def test_equal_records_give_equal_files(certificate: Certificate, tmp_path: Path) -> None:
    assert write_certificate(certificate, tmp_path / "a") == tmp_path / "a" / "certificate.md"
    write_certificate(certificate, tmp_path / "b")
    for name in ("certificate.json", "certificate.md", "figures/certificate.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    page = (tmp_path / "a" / "certificate.md").read_text()
    for said in ("# Certified robustness of mine", "recipe: smooth, seed 7", "a \\| machine", "has no certificate"):
        assert said in page
