"""The web page: attack an image and purify it. It loads nothing from other machines."""

import base64
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from purifiers.app.samples import Samples, read_picture
from purifiers.app.trial import ATTACKS, Prediction, Trial, attack_image, describe
from purifiers.attacks import Attack, show_fraction
from purifiers.data import to_float, to_uint8
from purifiers.errors import PurifiersError, require
from purifiers.purifier import PurifiedClassifier
from purifiers.serve.address import bind

WAITING = 16
"""Attacks in the queue, at most."""
LARGEST_FILE = "20mb"
LARGEST_EPSILON = 64
"""In 255ths; a quarter of the way from black to white."""
BEST = 3
"""Classes whose scores are shown."""
KNOWS = {"the classifier only": "blind", "the classifier and the purifier": "full"}
"""What the attacker knows, as the page says it -> the view."""
_STYLE = Path(__file__).with_name("page.css")
_EMPTY = "<p class='hint'>Choose an image, choose an attack, and press <b>Attack</b>.</p>"
_SCROLL = "() => document.querySelector('#result').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


@dataclass(frozen=True)
class Defence:
    """What the page shows.

    Attributes:
        defended: the purifier and the classifier behind it.
        name, classifier: their names.
        samples: images to begin with, on the device of ``defended``; their size and classes are the classifier's.
        robustness: what was measured of the purifier, in a sentence.
        epsilon: the attack's strength at first, in [0,1] units.
    """

    defended: PurifiedClassifier
    name: str
    classifier: str
    samples: Samples
    robustness: str
    epsilon: float


def serve_page(defence: Defence, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        defence: what it shows.
        host: an address of this machine; ``127.0.0.1`` for this machine alone.
        port: 0 for any free one.
        ready: called with the page's URL as soon as it can be opened.

    Raises:
        ConfigError: gradio is not installed, or the address cannot be used.
    """
    with bind(host, port) as listening:
        gradio, fastapi, uvicorn = (require(name) for name in ("gradio", "fastapi", "uvicorn"))
        app = gradio.mount_gradio_app(
            fastapi.FastAPI(),
            make_page(defence),
            path="/",
            footer_links=["gradio", "settings"],
            run_history=False,
            show_error=False,
            max_file_size=LARGEST_FILE,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            theme=_theme(gradio),
            css_paths=_STYLE,
        )
        listening.listen()
        address, taken = listening.getsockname()[:2]
        ready(f"http://{f'[{address}]' if ':' in address else address}:{taken}")
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run(sockets=[listening])


def make_page(defence: Defence) -> Any:
    """The page, as Gradio's Blocks; raises ConfigError if gradio is not installed."""
    gr = require("gradio")
    data, captions = defence.samples.data, defence.samples.captions
    height, width = data.images.shape[2:]
    pictures = [data.images[i].cpu() for i in range(len(data))]

    def choose(event: Any) -> tuple[Tensor, str, str, None]:
        return pictures[event.index], _preview(pictures[event.index]), _EMPTY, None

    choose.__annotations__["event"] = gr.SelectData  # Gradio passes the event by this mark

    def drop(file: str) -> tuple[Tensor, str, str, Any]:
        with _as_messages(gr):
            picture = read_picture(Path(file), height, width)
        return picture, _preview(picture), _EMPTY, gr.Gallery(selected_index=None)

    def run(picture: Tensor, attack: str, levels: float, knows: str) -> str:
        with _as_messages(gr):
            chosen = ATTACKS[attack](levels / 255)
            image = to_float(picture.to(data.images.device))
            trial = attack_image(defence.defended, image, chosen, KNOWS[knows])
        return trial_html(trial, attack, chosen, data.classes)

    with gr.Blocks(title=f"purifiers: {defence.name}", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(_head(defence), padding=False)
        chosen = gr.State(pictures[0])
        with gr.Row():
            with gr.Column(scale=2, min_width=320, elem_id="controls"):
                samples = gr.Gallery(
                    list(zip(map(_image, pictures), captions, strict=True)),
                    label="Take a sample",
                    columns=len(pictures),
                    height="auto",
                    object_fit="contain",
                    format="png",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="samples",
                )
                dropped = gr.File(label="Or drop an image", file_types=["image"], height=136, elem_id="dropped")
                preview = gr.HTML(_preview(pictures[0]), padding=False)
                attack = gr.Dropdown(
                    [(_described(name), name) for name in ATTACKS], value=next(iter(ATTACKS)), label="Attack", filterable=False
                )
                levels = gr.Slider(
                    0,
                    LARGEST_EPSILON,
                    value=min(round(2 * 255 * defence.epsilon) / 2, LARGEST_EPSILON),
                    step=0.5,
                    label="Epsilon: the largest change of a colour value, of 255",
                )
                knows = gr.Radio(list(KNOWS), value=next(iter(KNOWS)), label="The attacker knows")
                button = gr.Button("Attack", variant="primary", size="lg", elem_id="attack")
            with gr.Column(scale=3, min_width=320):
                result = gr.HTML(_EMPTY, padding=False, elem_id="result")
                gr.HTML(f"<h2>How robust is it?</h2><p>{escape(defence.robustness)}</p>", padding=False)
                gr.HTML(f"<p class='credit'>{escape(defence.samples.credit)}</p>", padding=False)
        shown = [chosen, preview, result]
        samples.select(choose, None, [*shown, dropped], api_visibility="private")
        unread = dropped.upload(drop, dropped, [*shown, samples], api_visibility="private")
        unread.failure(lambda: None, None, dropped, api_visibility="private")
        done = button.click(run, [chosen, attack, levels, knows], result, api_visibility="private")
        done.success(None, js=_SCROLL, api_visibility="private")
    return page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)


def trial_html(trial: Trial, name: str, attack: Attack, classes: Sequence[str]) -> str:
    """The pictures, scores and sentences of a trial.

    Args:
        trial: the result.
        name, attack: the attack and its name.
        classes: the names of the classes; they are escaped.
    """
    attacker, *results = describe(trial, classes)
    perturbation, factor = trial.amplified()
    figures = [
        _figure("Original", trial.original.image, _scores(trial.original, classes, "The classifier predicts")),
        _figure(
            f"Perturbation ×{factor}",
            perturbation,
            f"<p>The attack's change, amplified {factor} times. Grey is no change.</p>",
        ),
        _figure("Attacked", trial.attacked.image, _scores(trial.attacked, classes, "The classifier alone predicts", trial)),
        _figure("Purified", trial.purified.image, _scores(trial.purified, classes, "Behind the purifier it predicts", trial)),
    ]
    return (
        f"<p class='attacker'>{escape(attacker)}</p><p>{escape(' '.join(results))}</p>"
        f"<div class='figures'>{''.join(figures)}</div>"
        f"<p class='hint'>{escape(name)} within {show_fraction(attack.epsilon)} (L-inf), away from the class of the original. "
        "One image proves nothing about others.</p>"
    )


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


def _head(defence: Defence) -> str:
    name, classifier = escape(defence.name), escape(defence.classifier)
    return (
        "<h1>Attack an image, purify it</h1><p>See how an adversarial perturbation changes the prediction of a classifier "
        f"(<code>{classifier}</code>), and whether the purifier <code>{name}</code> in front of it restores it.</p>"
    )


def _described(name: str) -> str:
    steps = getattr(ATTACKS[name](1.0), "num_steps", 1)
    return f"{name}, {steps} step{'s' if steps > 1 else ''}"


def _preview(picture: Tensor) -> str:
    height, width = picture.shape[1:]
    return (
        f"<div class='preview'>{_picture(picture, 'the chosen image')}<p>The classifier's input: {width} by {height} pixels. "
        "An image of another size is scaled to cover that, and its centre kept.</p></div>"
    )


def _figure(title: str, image: Tensor, below: str) -> str:
    return f"<figure><figcaption>{title}</figcaption>{_picture(to_uint8(image.cpu()), title)}{below}</figure>"


def _scores(prediction: Prediction, classes: Sequence[str], title: str, trial: Trial | None = None) -> str:
    best = prediction.scores.topk(min(BEST, len(classes)))
    rows = "".join(
        f"<li><span>{escape(classes[label])}</span><span>{100 * score:.0f} %</span>"
        f"<span class='bar' style='width:{score:.1%}'></span></li>"
        for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )
    verdict = ""
    if trial is not None:
        same = prediction.top == trial.original.top
        verdict = f"<p class='{'same' if same else 'other'}'>{'✓ as the original' if same else '✗ not as the original'}</p>"
    return f"<p>{title}</p><ul>{rows}</ul>{verdict}"


def _picture(pixels: Tensor, title: str) -> str:
    written = io.BytesIO()
    _image(pixels).save(written, format="PNG")
    return f"<img alt='{escape(title)}' src='data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}'>"


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
