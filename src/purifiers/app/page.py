"""The web page: attack an image and purify it. It loads nothing from other machines."""

import base64
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image
from torch import Tensor

from purifiers.app.samples import read_picture
from purifiers.app.trial import ATTACKS, Prediction, Trial, attack_image
from purifiers.attacks import Attack
from purifiers.bulk.pieces import as_png
from purifiers.data import ImageSet, to_float, to_uint8
from purifiers.errors import PurifiersError, require
from purifiers.purifier import PurifiedClassifier
from purifiers.serve.server import serve_app

WAITING = 16
"""Attacks in the queue, at most."""
LARGEST_FILE = "20mb"
LARGEST_EPSILON = 64
"""In 255ths; a quarter of the way from black to white."""
BEST = 3
"""Classes whose scores are shown."""
KNOWS = {"the classifier only": "blind", "the classifier and the purifier": "full"}
"""What the attacker knows, as the page says it -> the view."""
_EMPTY = "<p class='hint'>Choose an image, choose an attack, and press <b>Attack</b>.</p>"
_SCROLL = "() => document.querySelector('#result').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


@dataclass(frozen=True)
class Defence:
    """What the page shows."""

    defended: PurifiedClassifier
    name: str  # of the purifier
    classifier: str  # the name of the one behind it
    samples: ImageSet  # to begin with, on the device of ``defended``; their size and classes are the classifier's
    credit: str  # their origin, in a sentence
    robustness: str  # what was measured of the purifier, in a sentence
    epsilon: float  # the attack's strength at first, in [0,1] units


def serve_page(defence: Defence, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C: arguments and errors as of :func:`purifiers.serve.server.serve_app`."""

    def make() -> Any:
        gradio, fastapi = require("gradio"), require("fastapi")
        look = {
            "theme": _theme(gradio),
            "css_paths": Path(__file__).with_name("page.css"),
            "footer_links": ["gradio", "settings"],
        }
        off = dict.fromkeys(("run_history", "show_error", "ssr_mode", "enable_monitoring", "mcp_server"), False)
        page = make_page(defence)
        return gradio.mount_gradio_app(fastapi.FastAPI(), page, path="/", max_file_size=LARGEST_FILE, **look, **off)

    serve_app(make, host, port, ready=ready, log_level="warning", timeout_graceful_shutdown=1)


def make_page(defence: Defence) -> Any:
    """The page, as Gradio's Blocks; raises ConfigError if gradio is not installed."""
    gr = require("gradio")
    data = defence.samples
    captions = [data.classes[label] for label in data.labels.tolist()]
    height, width = data.images.shape[2:]
    pictures = [data.images[i].cpu() for i in range(len(data))]

    def choose(event: Any) -> tuple[Tensor, str, str, None]:
        return pictures[event.index], _HTML.preview(pictures[event.index]), _EMPTY, None

    choose.__annotations__["event"] = gr.SelectData  # Gradio passes the event by this mark

    def drop(file: str) -> tuple[Tensor, str, str, Any]:
        with _as_messages(gr):
            picture = read_picture(Path(file), height, width)
        return picture, _HTML.preview(picture), _EMPTY, gr.Gallery(selected_index=None)

    def run(picture: Tensor, attack: str, levels: float, knows: str) -> str:
        with _as_messages(gr):
            chosen = ATTACKS[attack](epsilon=levels / 255)
            image = to_float(picture.to(data.images.device))
            trial = attack_image(defence.defended, image, chosen, KNOWS[knows])
            return trial_html(trial, chosen, data.classes)

    with gr.Blocks(title=f"purifiers: {defence.name}", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(_HTML.head(defence.name, defence.classifier), padding=False)
        chosen = gr.State(pictures[0])
        with gr.Row():
            with gr.Column(scale=2, min_width=320, elem_id="controls"):
                sampled = list(zip(map(_image, pictures), captions, strict=True))
                look = {
                    "columns": len(pictures),
                    "height": "auto",
                    "object_fit": "contain",
                    "format": "png",
                    "elem_id": "samples",
                }
                samples = gr.Gallery(sampled, label="Take a sample", allow_preview=False, interactive=False, buttons=[], **look)
                dropped = gr.File(label="Or drop an image", file_types=["image"], height=136, elem_id="dropped")
                preview = gr.HTML(_HTML.preview(pictures[0]), padding=False)
                steps = {name: getattr(make(epsilon=1), "num_steps", 1) for name, make in ATTACKS.items()}
                choices = [(f"{name}, {count} step{'s' if count > 1 else ''}", name) for name, count in steps.items()]
                attack = gr.Dropdown(choices, value=choices[0][1], label="Attack", filterable=False)
                first = min(round(2 * 255 * defence.epsilon) / 2, LARGEST_EPSILON)
                label = "Epsilon: the largest change of a colour value, of 255"
                levels = gr.Slider(0, LARGEST_EPSILON, value=first, step=0.5, label=label)
                knows = gr.Radio(list(KNOWS), value=next(iter(KNOWS)), label="The attacker knows")
                button = gr.Button("Attack", variant="primary", size="lg", elem_id="attack")
            with gr.Column(scale=3, min_width=320):
                result = gr.HTML(_EMPTY, padding=False, elem_id="result")
                gr.HTML(_HTML.about(defence.robustness, defence.credit), padding=False)
        shown = [chosen, preview, result]
        samples.select(choose, None, [*shown, dropped], api_visibility="private")
        unread = dropped.upload(drop, dropped, [*shown, samples], api_visibility="private")
        unread.failure(lambda: None, None, dropped, api_visibility="private")
        done = button.click(run, [chosen, attack, levels, knows], result, api_visibility="private")
        done.success(None, js=_SCROLL, api_visibility="private")
    return page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)


def trial_html(trial: Trial, attack: Attack, classes: Sequence[str]) -> str:
    """The result of ``attack``: pictures, scores and sentences. Class names are escaped."""
    return str(_HTML.trial(trial, attack.title, classes))


@contextmanager
def _as_messages(gr: Any) -> Iterator[None]:
    """Show errors as messages on the page; the traceback of an unexpected one goes to the terminal alone."""
    try:
        yield
    except PurifiersError as error:
        raise gr.Error(escape(str(error)), title="This did not work", print_exception=False) from error
    except Exception as error:
        logging.getLogger(__name__).exception("the page failed")
        raise gr.Error("Something went wrong; see the terminal.", print_exception=False) from error


def _theme(gr: Any) -> Any:
    theme = gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    dark_enough = {f"button_primary_background_fill{part}": "*primary_700" for part in ("", "_dark")}  # for white letters
    return theme.set(**dark_enough, **{key.replace("fill", "fill_hover"): "*primary_800" for key in dark_enough})


def _best(prediction: Prediction) -> list[tuple[int, float]]:
    best = prediction.scores.topk(min(BEST, len(prediction.scores)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _uri(image: Tensor) -> str:
    """A data URI of an image (C, H, W), uint8 or float in [0,1]."""
    png = as_png(_image(image if image.dtype == torch.uint8 else to_uint8(image.cpu())))
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


_LOADER = jinja2.PackageLoader("purifiers.app", ".")
_TEMPLATES = jinja2.Environment(loader=_LOADER, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
_TEMPLATES.filters |= {"best": _best, "uri": _uri}
_HTML: Any = _TEMPLATES.get_template("page.html.j2").module
