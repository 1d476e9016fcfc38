"""The equations of the story in MathML, which every browser sets without help."""

from __future__ import annotations


def _mi(x: str) -> str:
    return f"<mi>{x}</mi>"


def _row(*parts: str) -> str:
    return f"<mrow>{''.join(parts)}</mrow>"


def _sub(a: str, b: str) -> str:
    return f"<msub>{a}{b}</msub>"


def _sup(a: str, b: str) -> str:
    return f"<msup>{a}{b}</msup>"


def _mo(x: str) -> str:
    return f"<mo>{x}</mo>"


def _display(*parts: str) -> str:
    return f'<math display="block">{_row(*parts)}</math>'


_K, _V, _Q, _G = map(_mi, "KVQG")
_ALPHA = _mi("&alpha;")
_T = _mi("T")
_INVERSE = _sup(_row(_mo("("), _G, _mo("+"), _ALPHA, _mi("I"), _mo(")")), _row(_mo("&minus;"), "<mn>1</mn>"))
_KTV = _row(_sup(_K, _T), _V)
_LINEAR = _row(_Q, _KTV)


def _norm(x: str) -> str:
    return _row(_mo("&Vert;"), x, _mo("&Vert;"))


_INTENTION = _row(_Q, _INVERSE, _KTV)

FORM = _display(
    _sub(_mi("out"), _mi("i")), _mo("="),
    "<mfrac><mn>1</mn>", _sub(_mi("N"), _mi("i")), "</mfrac>",
    "<munder><mo>&sum;</mo><mi>j</mi></munder>",
    _sub(_mi("w"), _row(_mi("i"), _mi("j"))), _sub(_mi("v"), _mi("j")), _mo(","), "<mspace width='1em'></mspace>",
    _sub(_mi("w"), _row(_mi("i"), _mi("j"))), _mo("="),
    _sub(_mi("m"), _row(_mi("i"), _mi("j"))), _sup(_mi("e"), _sub(_mi("b"), _row(_mi("i"), _mi("j")))),
    _mi("f"), _mo("("), _mi("scale"), _mo("&sdot;"), _sup(_sub(_mi("q"), _mi("i")), _mo("*")), _mo("&sdot;"),
    _sub(_mi("k"), _mi("j")), _mo(")"),
)  # fmt: skip
LIMIT = _display(
    _ALPHA, _INTENTION, _mo("="), _LINEAR, _mo("&minus;"), _Q, _G, _INVERSE, _KTV, _mo(","),
    "<mspace width='1em'></mspace>", _G, _mo("="), _sup(_K, _T), _K,
)  # fmt: skip
BOUND = _display(
    _norm(_row(_ALPHA, _INTENTION, _mo("&minus;"), _LINEAR)), _mo("&le;"),
    "<mfrac>", _row(_norm(_Q), _norm(_G), _norm(_KTV)),
    _row(_ALPHA, _mo("+"), _sub(_mi("&lambda;"), _mi("min"))), "</mfrac>",
)  # fmt: skip
