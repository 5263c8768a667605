"""Text that others wrote (names of files, classes and branches, notes, a model card), as Streamlit may show it."""

import re

JOINER = "\u2060"
"""Has no width; what it parts is no link, no icon, no colour and no picture."""
_MARKUP = re.compile(r"[\\`*\[\]<>$~|!#&]|(?<![^\W_])_|_(?![^\W_])")
_STARTS = re.compile(r"^(\d+)([.)])|^([+-])")
_CALLS = re.compile(r":(?=[\w/+-])|(?<=www)(?=\.)|(?<=@)(?=\w)", re.IGNORECASE)


def plain(text: str) -> str:
    """A text such that Markdown shows it letter by letter, on one line: no picture, link, formula, icon or list."""
    escaped = _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
    escaped = _STARTS.sub(lambda found: f"{found[1] or ''}\\{found[2] or found[3]}", escaped)
    return _CALLS.sub(lambda found: found[0] + JOINER, escaped)


def without_pictures(markdown: str) -> str:
    """A model card whose pictures, which a browser would fetch from wherever they are, are links in words."""
    return markdown.replace("![", f"!{JOINER}[")
