"""A hook for mkdocs: shows the cross-references of our docstrings, :class:`Purifier`, as the plain name."""

import re


def on_page_content(html: str, **_: object) -> str:
    """Remove the Sphinx roles from a page."""
    return re.sub(r":(?:class|meth|func|data|mod|attr):\s*(?=<code>)", "", html)
