"""Tables and our own Markdown as LaTeX, for a paper; needs the package booktabs."""

import re
from collections.abc import Iterable, Sequence

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "≥": r"$\ge$"}
SPECIAL |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
INLINE = re.compile(r"`(?P<code>[^`]+)`|\*\*(?P<bold>.+?)\*\*")
HEADINGS = {1: "section*", 2: "section*", 3: "subsection*"}


def escaped(text: str) -> str:
    """Plain text with the signs that mean something to LaTeX."""
    return "".join(SPECIAL.get(sign, sign) for sign in text)


def latex_table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A `tabular` of booktabs: the first column of text to the left, the others to the right; cells as `inline`."""
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule"]
    lines.append(" & ".join(map(inline, head)) + r" \\")
    lines.append("\\midrule")
    lines += [" & ".join(map(inline, row)) + r" \\" for row in rows]
    lines += ["\\bottomrule", "\\end{tabular}"]
    if caption:
        lines = ["\\begin{table}", "\\centering", f"\\caption{{{inline(caption)}}}", *lines, "\\end{table}"]
    return "\n".join(lines)


def inline(text: str) -> str:
    """A line of Markdown with `code` and **bold** as LaTeX."""
    parts, end = [], 0
    for found in INLINE.finditer(text):
        parts.append(escaped(text[end : found.start()].replace("\\*", "*").replace("\\|", "|")))
        kind = "texttt" if found["code"] else "textbf"
        parts.append(f"\\{kind}{{{escaped(found['code'] or found['bold'])}}}")
        end = found.end()
    parts.append(escaped(text[end:].replace("\\*", "*").replace("\\|", "|")))
    return "".join(parts)


def markdown_to_latex(text: str) -> str:
    """The Markdown that the model card is made of as LaTeX: headings, paragraphs, lists, tables and code blocks."""
    lines, parts, place = text.splitlines(), [], 0
    while place < len(lines):
        line = lines[place]
        if line.startswith("```"):
            end = next(n for n in range(place + 1, len(lines)) if lines[n].startswith("```"))
            parts += ["\\begin{verbatim}", *lines[place + 1 : end], "\\end{verbatim}"]
            place = end + 1
        elif line.startswith("#"):
            marks, _, words = line.partition(" ")
            parts.append(f"\\{HEADINGS[len(marks)]}{{{inline(words)}}}")
            place += 1
        elif line.startswith(("|", "- ")):
            end = place
            while end < len(lines) and lines[end].startswith(line[0]):
                end += 1
            block = lines[place:end]
            if line[0] == "|":
                cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in block]
                head, _, *rows = [[cell.strip() for cell in row] for row in cells]
                parts.append(latex_table(head, rows))
            else:
                parts += ["\\begin{itemize}", *(f"\\item {inline(row[2:])}" for row in block), "\\end{itemize}"]
            place = end
        else:
            parts.append(inline(line))
            place += 1
    return "\n".join(parts).rstrip() + "\n"
