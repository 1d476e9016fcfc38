"""The equations of the forms' files as LaTeX: the lines that a reader of the file sees, and no second copy of them.

    z_ij  = scale * q_i . k_j                     a score for every pair

What stands behind two spaces and begins with a word is words. The rest is translated sign by sign.
"""

from __future__ import annotations

import re

WORDS = re.compile(r"\s{2,}([a-z]+[ ,](?!= ).*)$")
NAMES = {
    "sum": r"\sum",
    "prod": r"\prod",
    "argmin": r"\operatorname*{argmin}",
    "softmax": r"\operatorname{softmax}",
    "diag": r"\operatorname{diag}",
    "exp": r"\exp",
    "alpha": r"\alpha",
    "beta": r"\beta",
    "phi": r"\varphi",
    "mu": r"\mu",
    "of": r"\text{ of }",
}
SYMBOLS = (
    (r"\*(?=_)", "^*"),  # q*_i: another query
    (r"\|([^|]+)\|", r"\\lVert \1 \\rVert"),
    (r"\s\*\s", r"\\, "),
    (r"\s\.\s", r" \\cdot "),
    (r"_\(([^)]*)\)", r"_{\1}"),
    (r"_([a-z]{2,}\b)", r"_{\1}"),
    (r"\^-1", r"^{-1}"),
    (r"\^T", r"^\\top"),
    (r"\s{2,}", r"\\, "),
)


def displayed(block: str) -> str:
    r"""A block of equations, each line with its words.

    >>> print(displayed("w_ij  = m_ij * exp(z_ij)     a weight\nout_i = sum_j w_ij v_j / sum_j w_ij"))
    \begin{aligned}
    w_{ij} &= m_{ij}\, \exp(z_{ij}) && {\small\text{a weight}} \\
    \mathrm{out}_i &= \frac{\sum_j w_{ij} v_j}{\sum_j w_{ij}}
    \end{aligned}
    """
    rows = []
    for line in block.splitlines():
        found = WORDS.search(line)
        formula, words = (line[: found.start()].strip(), found.group(1)) if found else (line.strip(), "")
        row = _equation(formula)
        rows.append(rf"{row} && {{\small\text{{{words}}}}}" if words else row)
    return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"


def _equation(text: str) -> str:
    """One line, aligned at its first sign of equality."""
    left, equals, right = text.partition(" = ")
    if not equals:
        return f"& {latex(text)}" if text else "&"
    sides = re.split(r",(?=\s{2,})", right)  # further equations on the same line
    return f"{latex(left.strip())} &= " + r",\quad ".join(_side(side.strip()) for side in sides)


def _side(text: str) -> str:
    left, equals, right = text.partition(" = ")
    return f"{latex(left)} = {_quotient(right)}" if equals else _quotient(text)


def _quotient(text: str) -> str:
    """A fraction, if that is what the whole of it is."""
    depth, cuts = 0, []
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and sign == "/":
            cuts.append(at)
        if depth == 0 and text[at : at + 3] in (" + ", " - "):
            return latex(text)
    if len(cuts) != 1:
        return latex(text)
    above, below = text[: cuts[0]].strip(), text[cuts[0] + 1 :].strip()
    whole = re.fullmatch(r"\(([^()]*(?:\([^()]*(?:\([^()]*\)[^()]*)*\)[^()]*)*)\)", below)
    return rf"\frac{{{latex(above)}}}{{{latex(whole.group(1) if whole else below)}}}"


def latex(text: str) -> str:
    r"""A formula without its relation.

    >>> latex("(K^T K + alpha I)^-1 q*_i")
    '(K^\\top K + \\alpha I)^{-1} q^*_i'
    """
    for pattern, sign in SYMBOLS:
        text = re.sub(pattern, sign, text)
    return re.sub(r"(?<![\\a-zA-Z{])[a-z]+(?![a-z}])", _name, text)


def _name(found: re.Match[str]) -> str:
    name = found.group()
    return NAMES.get(name, name if len(name) == 1 else rf"\mathrm{{{name}}}")
