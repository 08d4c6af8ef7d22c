"""What the fuzzer calls, in a process of its own, which atheris ends: python fuzz_target.py RUNS SEED FOLDER.

FOLDER/corpus holds the inputs to begin with; an input that fails is kept in FOLDER, and the status is not 0. The first byte of
an input chooses its reader.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["purifiers", "PIL", "yaml"]):
    from purifiers.data.files import read_image
    from purifiers.errors import PurifiersError
    from purifiers.recipes.load import load_recipe
    from purifiers.registry import CONFIG_FILE, WEIGHTS_FILE, load_network
    from purifiers.storage import load_state

SECONDS = 60  # for one input, also where other programs take the processor; more is a hang
MEGABYTES = 2000  # of the process
LARGEST = 8192  # bytes of an input


def image(folder: Path) -> Callable[[bytes], object]:
    """The image reader."""

    def read(content: bytes) -> None:
        picture = read_image(content, max_pixels=10**6)
        shown = picture.over_white()
        assert shown.mode == "RGB"
        assert 0 < shown.width * shown.height <= 10**6

    return read


def recipe(folder: Path) -> Callable[[bytes], object]:
    """The recipe of a file, and a change of one on the command line."""
    path = folder / "recipe.yaml"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        try:
            load_recipe(path)
        except PurifiersError:
            if b"=" in content[:80]:
                load_recipe("digits", [content.decode(errors="replace")])

    return read


def config(folder: Path) -> Callable[[bytes], object]:
    """The config.json of a network, beside its weights."""
    (folder / WEIGHTS_FILE).write_bytes((folder / "weights").read_bytes())

    def read(content: bytes) -> None:
        (folder / CONFIG_FILE).write_bytes(content)
        load_network(folder)

    return read


def weights(folder: Path) -> Callable[[bytes], object]:
    """The weights of a network, and a training state."""
    (folder / CONFIG_FILE).write_bytes((folder / "config").read_bytes())

    def read(content: bytes) -> None:
        (folder / WEIGHTS_FILE).write_bytes(content)
        try:
            load_network(folder)
        except PurifiersError:
            json.dumps(load_state(folder / WEIGHTS_FILE), default=repr)

    return read


READERS = (image, recipe, config, weights)

if __name__ == "__main__":
    runs, seed, where = sys.argv[1:]
    warnings.simplefilter("ignore")  # Pillow's, of damaged tags
    readers = [reader(Path(where)) for reader in READERS]

    def one_input(content: bytes) -> None:
        """Only the library's own errors may leave."""
        try:
            if content:
                readers[content[0] % len(readers)](content[1:])
        except PurifiersError:
            pass

    options = [f"-runs={runs}", f"-seed={seed}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", f"-max_len={LARGEST}"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", f"-artifact_prefix={where}/", f"{where}/corpus"], one_input)
    atheris.Fuzz()
