"""Hooks for mkdocs: the site has the README, the results and the model cards too, and links to them work there as on disk."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "results/**/*.md", "src/purifiers/weights/*/README.md")
PICTURES = ("results/**/*.svg", "results/**/*.png", "docs/*.png")
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and pictures that are outside of ``docs/``."""
    for path in (path for pattern in (*OTHERS, *PICTURES) for path in sorted(ROOT.glob(pattern))):
        if files.get_file_from_path(_place(path)) is None:
            files.append(File.generated(config, _place(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: object) -> str:
    """Turn links to files of the repository into links within the site, or into plain text where the site has no such file."""
    home = Path(page.file.abs_src_path).parent

    def within(link: re.Match[str]) -> str:
        text, target, anchor = link[1], (home / link[2]).resolve(), link[3] or ""
        there = target.is_relative_to(ROOT) and files.get_file_from_path(_place(target))
        return f"[{text}]({os.path.relpath(_place(target), Path(page.file.src_uri).parent)}{anchor})" if there else text

    return LINK.sub(within, markdown)


def on_page_content(html: str, **_: object) -> str:
    """Show the cross-references of our docstrings, :class:`Purifier`, as the plain name."""
    return re.sub(r":(?:class|meth|func|data|mod|attr):\s*(?=<code>)", "", html)


def _place(path: Path) -> str:
    """Where a file of the repository is in the site: ``docs/`` is its root, and ``index.md`` its first page."""
    place = path.relative_to(ROOT).as_posix().removeprefix("docs/")
    return "readme.md" if place == "README.md" else place
