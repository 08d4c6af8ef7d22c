from pathlib import Path

from purifiers import weights
from purifiers.reports.worth import worth

CARD = """---
datasets: [mine]
---

In front of net, accuracy in %; the attacker knows the classifier (view blind) or both (view full):

| attack | view | epsilon | images | undefended | purified | 95 % interval | PSNR (dB) | SSIM |
|---|---|---:|---:|---:|---:|---:|---:|---:|
| clean images | - | - | 10,000 | 91.80 | 89.74 | 89.13 to 90.32 | 34.7 | - |
| weak | blind | 8/255 | 10,000 | 0.00 | 84.40 | 83.68 to 85.10 | 30.8 | - |
| strong | blind | 8/255 | 1,000 | 0.00 | 9.50 | 7.00 to 12.00 | 30.8 | - |
| larger | blind | 16/255 | 1,000 | 0.00 | 3.00 | 2.00 to 4.00 | 28.1 | - |
{full}
In front of other, accuracy in %; the attacker knows the classifier (view blind) or both (view full):

| weakest | blind | 8/255 | 100 | 0.00 | 1.00 | 0.00 to 2.00 | 30.8 | - |
"""


def write(folder: Path, full: str) -> Path:
    (folder / "card.md").write_text(CARD.replace("{full}", full))
    return folder


def test_the_lowest_number_of_each_view_within_the_epsilon_of_both(tmp_path: Path) -> None:
    said = worth(write(tmp_path, "| PGD | full | 8/255 | 500 | - | 0.20 | 0.00 to 0.76 | 28.2 | - |\n"))
    assert said == (
        "Measured on mine in front of net: 89.74 % of clean images right, 34.7 dB from the originals; "
        "9.50 % under the best measured attack by one who knows the classifier only (strong, epsilon 8/255, 1,000 images); "
        "0.20 % under the best measured attack by one who knows the purifier too (PGD, epsilon 8/255, 500 images). "
        "Better attacks may leave less."
    )


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    assert "no model card" in worth(tmp_path)
    said = worth(write(tmp_path, ""), "another")
    assert "3.00 % under" in said and "not measured under an attacker who knows the purifier too" in said
    assert said.endswith("Behind it here is another: if that is another classifier, these numbers say nothing of it.")


def test_the_cards_that_ship_are_read() -> None:
    """Of every purifier, as the writer of the cards wrote them."""
    for name in weights.PURIFIERS:
        said = worth(weights.locate(name))
        assert said.startswith("Measured on cifar10 in front of ") and said.count("best measured attack") == 2, said
    robust = worth(weights.locate("cifar10-robust"))
    assert (
        "29.50 % under the best measured attack by one who knows the purifier too (worst of the audit, epsilon 8/255, 200"
        in robust
    )
