"""The page's words without a browser, and the real command in a real one."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from purifiers import PurifiedClassifier, Purifier
from purifiers.app import page as page_module
from purifiers.app.page import KNOWS, Defence, make_page, serve_page, trial_html
from purifiers.app.trial import Prediction, Trial, attack_image
from purifiers.attacks import FGSM
from purifiers.cli import main
from purifiers.data import ImageSet
from purifiers.data.cifar10 import CLASSES
from purifiers.errors import ConfigError, InputError
from purifiers.networks import CAE, ResNet
from purifiers.registry import save_network
from purifiers.runs import Run
from tests.conftest import Linear

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SECONDS = 120
"""To wait for anything, at most: a busy machine is not a defect."""


def test_class_names_are_text_and_scores_add_up() -> None:
    defended = PurifiedClassifier(torch.nn.Identity(), Linear(2, (3, 4, 4)))
    trial = attack_image(defended, torch.full((3, 4, 4), 0.5), FGSM(epsilon=8 / 255), "blind")
    html = trial_html(trial, FGSM(epsilon=8 / 255), ("<b>cat", "dog"))
    assert "<b>cat" not in html and "&lt;b&gt;cat" in html
    assert "Perturbation ×15" in html and "FGSM, 8/255" in html
    assert html.count("<img") == 4 and html.count("<ul>") == 3
    for three in re.findall(r"<ul>(.*?)</ul>", html, re.DOTALL):
        assert sum(map(int, re.findall(r"(\d+) %", three))) == pytest.approx(100, abs=1)


SENTENCES = (
    "predicts dog instead of cat",
    "still predicts cat",
    "predicts cat, as before",
    "predicts frog, not cat: the purifier did not help",
    "Without an attack the purified image is classified as dog",
    "try that one too",
)


@pytest.mark.parametrize(
    ("view", "tops", "expected"),
    [
        ("blind", (0, 1, 0, 0), {0, 2, 5}),
        ("full", (0, 1, 0, 0), {0, 2}),
        ("full", (0, 0, 2, 0), {1, 3}),
        ("blind", (0, 1, 2, 1), {0, 3, 4}),
    ],
)
def test_the_sentences_claim_no_more_than_happened(view: str, tops: tuple[int, ...], expected: set[int]) -> None:
    predictions = [Prediction(torch.zeros(3, 4, 4), torch.eye(3)[top]) for top in tops]
    html = trial_html(Trial(view, *predictions), FGSM(epsilon=8 / 255), ("cat", "dog", "frog"))
    assert {i for i, sentence in enumerate(SENTENCES) if sentence in html} == expected
    assert f"(view {view})" in html and ("not the purifier" in html) == (view == "blind")
    assert html.count("✗") == sum(top != tops[0] for top in tops[1:3])


def test_errors_are_words_and_traces_stay_in_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    class Told(Exception):  # noqa: N818 (stands for gradio.Error)
        def __init__(self, message: str, **options: Any) -> None:
            super().__init__(message)

    gradio = SimpleNamespace(Error=Told)
    with pytest.raises(Told, match="&lt;x&gt; is no image"), page_module._as_messages(gradio):
        raise InputError("<x> is no image")
    with pytest.raises(Told, match="Something went wrong") as found, page_module._as_messages(gradio):
        raise ZeroDivisionError("secret")
    assert "secret" not in str(found.value) and "secret" in caplog.text


def test_the_page_without_a_browser(tmp_path: Path) -> None:
    gradio = pytest.importorskip("gradio")
    data = ImageSet("two", torch.full((2, 3, 16, 16), 128, dtype=torch.uint8), torch.tensor([0, 1]), ("<cat>", "dog"))
    defended = PurifiedClassifier(torch.nn.Identity(), Linear(2, (3, 16, 16)))
    defence = Defence(defended, "mine", "<theirs>", data, "by me", "robust", 0.1)

    async def make() -> Any:  # without a running event loop gradio makes one and leaves it open
        return make_page(defence)

    page = asyncio.run(make())
    config = json.dumps(page.get_config_file(), default=str)
    assert "&lt;theirs&gt;" in config and "<theirs>" not in config
    assert "by me" in config and "PGD, 20 steps" in config and '"value": 25.5' in config
    functions = {function.name: function.fn for function in page.fns.values()}
    (tmp_path / "bad.png").write_text("not an image")
    with pytest.raises(gradio.Error, match="damaged"):
        functions["drop"](str(tmp_path / "bad.png"))
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.webp")
    picture, preview, *_ = functions["drop"](str(tmp_path / "red.webp"))
    assert picture.shape == (3, 16, 16) and "16 by 16 pixels" in preview
    for knows, view in KNOWS.items():
        html = functions["run"](picture, "PGD", 25.5, knows)
        assert type(html) is str and f"(view {view})" in html and "PGD-20, 0.1 (L-inf)" in html
        assert html.count("<figcaption>") == 4 and html.count("<li>") == 6
    defended.purifier.register_forward_hook(lambda *_: torch.full((1, 3, 16, 16), torch.nan))
    with pytest.raises(gradio.Error, match="NaN"):
        functions["run"](picture, "PGD", 25.5, next(iter(KNOWS)))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command would serve."""
    served: list[tuple[Any, ...]] = []
    monkeypatch.setattr(page_module, "serve_page", lambda *given: served.append(given))
    return served


def test_a_run_has_its_own_classifier_classes_and_numbers(tiny_run: Run, opened: list[tuple[Any, ...]]) -> None:
    assert main(["app", str(tiny_run.folder), "--device", "cpu"]) == 0
    (defence, host, port, _), *_ = opened
    assert (host, port) == ("127.0.0.1", 7860)
    assert defence.samples.labels.tolist() == list(range(10)) and defence.samples.classes == tuple("0123456789")
    assert defence.epsilon == 0.1
    assert "no model card" in defence.robustness  # it was not evaluated
    images = defence.samples.images[:2] / 255
    assert torch.equal(defence.defended(images), tiny_run.classifier(tiny_run.purifiers["student"](images)))


def test_a_shipped_one_needs_no_data(
    opened: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("purifiers.runs.layout.load_images", None)
    assert main(["app", "cifar10-robust", "--device", "cpu"]) == 0
    assert main(["app", "--classifier", "cifar10-resnet20", "--device", "cpu"]) == 0
    (robust, *_), (other, *_) = opened
    assert (
        robust.samples.classes == CLASSES and "29.50 %" in robust.robustness and "The classifier here" not in robust.robustness
    )
    assert other.name == "cifar10" and "The classifier here is cifar10-resnet20:" in other.robustness
    assert main(["app", "cifar11"]) == 1
    assert "did you mean 'cifar10'?" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told() -> None:
    defence: Any = None
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--port"):
        serve_page(defence, "127.0.0.1", taken.getsockname()[1], print)
    for host, port in (("no.such.host.invalid", 0), ("127.0.0.1", 70000)):
        with pytest.raises(ConfigError, match="cannot listen at"):
            serve_page(defence, host, port, print)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real command with a small purifier and classifier, on a free port; Ctrl-C has to end it without a word."""
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    Purifier(CAE(widths=[4, 6], blocks=[1, 1], skip_every=1)).save_pretrained(folder / "small")
    save_network(folder / "classifier", ResNet(8, width=4))
    command = ["app", str(folder / "small"), "--recipe", "digits", "--classifier", str(folder / "classifier"), "--port", "0"]
    with (
        (folder / "errors").open("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "purifiers", *command, "--device", "cpu"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "GRADIO_TEMP_DIR": str(folder / "uploads")},
        ) as process,
    ):
        assert process.stdout is not None
        found = re.match(r"open (http://127\.0\.0\.1:\d+) ", process.stdout.readline())
        try:
            assert found, (folder / "errors").read_text()
            yield found[1]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 0
        assert (folder / "errors").read_text() == ""
        assert not [file for file in (folder / "uploads").rglob("*") if file.name in ("holiday.png", "red.webp")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the page in a browser needs playwright")
    if CHROMIUM is None:
        pytest.skip("the page in a browser needs chromium or chrome, and there is none on the PATH")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Any]:
    """Opens the page with everything blocked that is not of its own address; nothing may have asked for any."""
    contexts, foreign = [], []

    def visit(**options: Any) -> Any:
        context = browser.new_context(**options)
        context.set_default_timeout(1000 * SECONDS)
        contexts.append(context)

        def judge(route: Any) -> None:
            own = route.request.url.startswith((url, "data:", "blob:"))
            if not own:
                foreign.append(route.request.url)
            route.continue_() if own else route.abort()

        context.route("**/*", judge)
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#samples img")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert foreign == []


def test_a_sample_is_attacked_by_one_who_does_not_know_the_purifier_and_one_who_does(visit: Any) -> None:
    page = visit(viewport={"width": 1280, "height": 800}, color_scheme="dark")
    assert page.title() == "purifiers: small"
    assert page.locator("body.dark").count() == 1
    assert "no model card" in page.inner_text("body")
    first = page.get_attribute(".preview img", "src")
    page.click("#samples button >> nth=3")
    page.wait_for_function("first => document.querySelector('.preview img').src != first", arg=first)
    shown = []
    for knows, said in (("the classifier only", "(view blind)"), ("the classifier and the purifier", "(view full)")):
        page.click(f"label:has-text('{knows}')")
        page.click("#attack")
        page.wait_for_selector(f".attacker:has-text('{said}')")
        assert page.locator("figcaption").all_inner_texts() == ["Original", "Perturbation ×5", "Attacked", "Purified"]
        assert page.locator(".figures ul").count() == 3 and page.locator(".figures li").count() == 9
        assert page.evaluate("[...document.querySelectorAll('.figures img')].every(image => image.naturalWidth == 16)")
        assert page.get_attribute(".figures img >> nth=0", "src") == page.get_attribute(".preview img", "src")
        shown.append([image.get_attribute("src") for image in page.locator(".figures img").all()])
    assert shown[0][0] == shown[1][0] and shown[0][2] != shown[1][2]
    assert "PGD-20, 0.1 (L-inf)" in page.inner_text("#result")


def test_it_fits_a_phone_and_a_finger_and_takes_a_file_of_ones_own(visit: Any, tmp_path: Path) -> None:
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for attacked in (False, True):
        if attacked:
            page.tap("#attack")
            page.wait_for_selector(".figures")
        # A phone widens its window for what does not fit: both have to be what they were.
        assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    for control in ("#attack", "#samples button >> nth=0", "#controls label:has(input[type=radio]) >> nth=0"):
        assert min(page.locator(control).bounding_box()[side] for side in ("width", "height")) >= 44, control

    first = page.get_attribute(".preview img", "src")
    bad = tmp_path / "holiday.png"
    bad.write_text("not an image")
    page.set_input_files("#dropped input[type=file]", bad)
    page.wait_for_selector("text='holiday.png' is damaged or not an image")
    assert "Traceback" not in page.inner_text("body")
    assert page.get_attribute(".preview img", "src") == first
    page.wait_for_selector("#dropped input[type=file]", state="attached")  # ready for another
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red.webp")
    page.set_input_files("#dropped input[type=file]", tmp_path / "red.webp")
    page.wait_for_function("first => document.querySelector('.preview img').src != first", arg=first)
    page.click("#attack")
    # The figures of the sample are there until those of the file come.
    page.wait_for_function("document.querySelector('.figures img')?.src == document.querySelector('.preview img').src")
