"""Write docs/figures/map.svg, the map of keys-values-queries space: python docs/make_map.py

Forms are places, and what is proved of two of them is a road: an identity, or a limit, with an arrow to what it tends
to. Every road names the law that ``kvq-ref verify`` and the tests hold the form to. On the first page of the site the
same map is made of links: a place leads to its form's page, a road to its law there, and its tick to the check.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

from make_forms import anchor

from kvq_ref.dispatch import file_name
from kvq_ref.grid import GRID
from kvq_ref.lab.looks import LOOKS, THEMES
from kvq_ref.testing import LAWS, Law

PAGE = Path(__file__).with_name("figures") / "map.svg"
WIDTH, HEIGHT = 1140, 720
BOX = (198, 62)  # of a place


class Spot(NamedTuple):
    """Where a form is drawn, and its formula."""

    x: float
    y: float
    formula: str


class Road(NamedTuple):
    """What is proved of two forms.

    Attributes
    ----------
    start, end : str
        A limit leads from start to end.
    words : str
        What makes them meet.
    law : str
        Its name in ``kvq_ref.testing.laws.LAWS``, for one of the two.
    is_limit : bool
    bend : float
        How far the middle of the road is from the straight line, to its left.
    """

    start: str
    end: str
    words: str
    law: str
    is_limit: bool
    bend: float = 0.0


SPOTS: dict[str, Spot] = {
    "sigma_intention": Spot(330, 112, "mean by exp z*"),
    "intention": Spot(600, 112, "sum of z* v"),
    "expressive_intention": Spot(1010, 112, "mean by z*² / (1 + z*²)"),
    "softmax_attention": Spot(330, 390, "mean by exp z"),
    "linear_attention": Spot(600, 390, "sum of z v"),
    "expressive_attention": Spot(1010, 390, "mean by z² / (1 + z²)"),
    "local_linear_attention": Spot(112, 240, "a line for each query"),
    "sigmoid_attention": Spot(112, 524, "sum by σ(z)"),
    "taylor_attention": Spot(330, 640, "mean by 1 + z + z²/2"),
    "quadratic_attention": Spot(1010, 640, "mean by z²"),
    "delta_rule": Spot(550, 640, "S += β k (v − k S)"),
    "gated_linear_attention": Spot(770, 640, "S = γ S + k v"),
    "mesa_attention": Spot(836, 226, "z* of keys that fade"),
}
ROADS = (
    Road("intention", "linear_attention", "α → ∞, times α", "intention tends to linear attention", True, 52),
    Road("intention", "linear_attention", "orthogonal keys", "orthonormal keys make intention linear", False, -52),
    Road("sigma_intention", "softmax_attention", "α → ∞, scale α s", "preconditioned forms tend to plain ones", True),
    Road(
        "expressive_intention",
        "expressive_attention",
        "α → ∞, scale α s",
        "preconditioned forms tend to plain ones",
        True,
    ),
    Road("local_linear_attention", "softmax_attention", "α → ∞", "lines tend to softmax attention", True, 22),
    Road(
        "local_linear_attention",
        "intention",
        "scale 0: ridge",
        "without scale it is ridge with an intercept",
        False,
        -14,
    ),
    Road(
        "sigmoid_attention",
        "softmax_attention",
        "offset → −∞",
        "sigmoid attention of low offset is exponential",
        True,
        -22,
    ),
    Road(
        "taylor_attention",
        "softmax_attention",
        "scale → 0",
        "taylor attention of small scores is softmax attention",
        True,
    ),
    Road(
        "expressive_attention",
        "quadratic_attention",
        "scale → 0",
        "expressive attention of small scores is quadratic",
        True,
    ),
    Road(
        "quadratic_attention",
        "linear_attention",
        "products x xᵀ",
        "quadratic attention is linear in products of coordinates",
        False,
        -34,
    ),
    Road("delta_rule", "linear_attention", "steps β → 0", "small steps tend to linear attention", True),
    Road("gated_linear_attention", "linear_attention", "decay γ = 1", "a decay of one forgets nothing", False),
    Road("mesa_attention", "intention", "decay γ = 1", "a decay of one forgets nothing", False, -18),
    Road(
        "mesa_attention",
        "gated_linear_attention",
        "q* for q",
        "mesa is gated linear attention of other queries",
        False,
        30,
    ),
)
BANDS = (("least squares", "q* = (KᵀK + αI)⁻¹ q,  z* = q* · k", 36), ("plain queries", "z = q · k", 318))


def svg(linked: bool = False) -> str:
    """The map: a picture, in the colours that the reader's screen prefers; or links, in those of the site's page."""
    title = "Forms of attention as places; identities and limits as roads between them"
    # to those who do not see it a picture is one thing, and there would be no links in it
    name = f'class="map" role="group" aria-label="{title}"' if linked else 'role="img"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {name}>',
        *([] if linked else [f"<title>{title}</title>"]),
        f"<style>{_style(linked)}</style>",
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0 L10 5 L0 10 z" class="head"/></marker></defs>',
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="14"/>',
    ]
    for band, formula, y in BANDS:
        lines.append(f'<text class="band" x="24" y="{y}">{band}<tspan class="soft" dx="12">{formula}</tspan></text>')
    curves, words = zip(*(_road(road, linked) for road in ROADS), strict=True)
    lines += [*curves, *words]
    lines += [_spot(form, spot, linked) for form, spot in SPOTS.items()]
    lines.append(_legend())
    return "\n".join(lines) + "\n</svg>\n"


def _style(linked: bool) -> str:
    """Light, and dark where that is preferred; on a page, which has rules of its own, for the map alone."""

    def colours(theme: str) -> str:
        t = THEMES[theme]
        kinds = "".join(
            f".{kind} rect{{stroke:{getattr(t, kind)}}} .{kind} .name{{fill:{getattr(t, kind)}}} "
            for kind in ("linear", "softmax", "expressive")
        )
        return (
            f".paper{{fill:{t.paper}}} text{{fill:{t.ink}}} .place rect{{fill:{t.paper}}} .soft{{fill:{t.yardstick}}} "
            f".road path{{stroke:{t.yardstick}}} .head{{fill:{t.yardstick}}} .words{{stroke:{t.paper}}} {kinds}"
        )

    shapes = (
        "text{font:15px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif} .place rect{stroke-width:2} "
        ".name{font-weight:650;font-size:16px} .soft{font-weight:400;font-size:14px} .band{font-weight:650} "
        ".road path{fill:none;stroke-width:1.6} .limit path{stroke-dasharray:6 4} "
        ".words{font-size:13.5px;paint-order:stroke;stroke-width:9px;stroke-linejoin:round} "
    )
    if not linked:
        return f"{shapes}{colours('light')} @media (prefers-color-scheme: dark){{{colours('dark')}}}"
    links = (
        "a{text-decoration:none} a:hover .words{text-decoration:underline} .road:hover path{stroke-width:3} "
        ".place:hover rect{stroke-width:4} .tick text{font-size:12px} .tick:hover text{font-weight:900} "
        ".road .reach{stroke-opacity:0;stroke-width:16;stroke-dasharray:none} "
    )
    return f".map{{{shapes}{links}{colours('light')}}} [data-theme=dark] .map{{{colours('dark')}}}"


def _spot(name: str, spot: Spot, linked: bool) -> str:
    """A place: coloured by its score; its corners are square where queries are preconditioned."""
    look, (w, h) = LOOKS[name], BOX
    radius = 3 if GRID[name].query == "preconditioned" else 24
    tag, href = ("a", f' href="{_page(name)}"') if linked else ("g", "")
    return (
        f'<{tag} class="place {look.score}"{href}>'
        f'<rect x="{spot.x - w / 2}" y="{spot.y - h / 2}" width="{w}" height="{h}" rx="{radius}"/>'
        f'<text class="name" x="{spot.x}" y="{spot.y - 5}" text-anchor="middle">{look.label}</text>'
        f'<text class="soft" x="{spot.x}" y="{spot.y + 17}" text-anchor="middle">{escape(spot.formula)}</text></{tag}>'
    )


def _page(name: str) -> str:
    """The page of a form, from where the map is."""
    return f"forms/{file_name(name)}.html"


def _law(road: Road) -> tuple[str, Law]:
    """The form that obeys a road's law, and the law."""
    law = next(law for law in LAWS if law.name == road.law)
    return (road.start if road.start in law.forms else road.end), law


def _road(road: Road, linked: bool) -> tuple[str, str]:
    """A curve from the edge of one place to that of the other, and its words, which go over all curves."""
    a, b = SPOTS[road.start], SPOTS[road.end]
    dx, dy = b.x - a.x, b.y - a.y
    length = (dx * dx + dy * dy) ** 0.5
    middle = ((a.x + b.x) / 2 + road.bend * dy / length, (a.y + b.y) / 2 - road.bend * dx / length)
    control = (2 * middle[0] - (a.x + b.x) / 2, 2 * middle[1] - (a.y + b.y) / 2)
    start, end = _edge(a, control), _edge(b, control)
    arrow = ' marker-end="url(#arrow)"' if road.is_limit else ""
    x, y = (start[0] + 2 * control[0] + end[0]) / 4, (start[1] + 2 * control[1] + end[1]) / 4
    curve = f"M{start[0]:.1f} {start[1]:.1f} Q{control[0]:.1f} {control[1]:.1f} {end[0]:.1f} {end[1]:.1f}"
    path, kind = f'<path d="{curve}"{arrow}/>', f'class="road {"limit" if road.is_limit else "identity"}"'
    title, words = f"<title>{escape(road.law)}</title>", escape(road.words)
    label = f'<text class="words" x="{x:.1f}" y="{y + 5:.1f}" text-anchor="middle">{words}{title}</text>'
    if not linked:
        return f"<g {kind}>{title}{path}</g>", label
    form, law = _law(road)
    to_law = f'href="{_page(form)}#{anchor(law, file_name(form))}"'
    to_check = f'href="laws.html#{anchor(law, "check")}"'
    return (  # the curve is for the mouse alone, whose reach is wider than the line
        f'<a {kind} {to_law} tabindex="-1" aria-hidden="true">{title}<path class="reach" d="{curve}"/>{path}</a>',
        f'<a {to_law}>{label}</a><a class="tick" {to_check} aria-label="the check that {escape(road.law)}">'
        f'<title>how it is checked</title><circle cx="{x:.1f}" cy="{y + 22:.1f}" r="9" class="paper"/>'
        f'<text x="{x:.1f}" y="{y + 26.5:.1f}" text-anchor="middle">✓</text></a>',
    )


def _edge(spot: Spot, towards: tuple[float, float]) -> tuple[float, float]:
    """Where the line from the middle of a place leaves it."""
    dx, dy = towards[0] - spot.x, towards[1] - spot.y
    w, h = BOX[0] / 2 + 4, BOX[1] / 2 + 4
    share = min(w / abs(dx) if dx else float("inf"), h / abs(dy) if dy else float("inf"))
    return spot.x + share * dx, spot.y + share * dy


def _legend() -> str:
    x, y = 24, HEIGHT - 22
    return (
        f'<g class="road"><path d="M{x} {y} h36"/></g><text class="soft" x="{x + 44}" y="{y + 5}">identity</text>'
        f'<g class="road limit"><path d="M{x + 118} {y} h36" marker-end="url(#arrow)"/></g>'
        f'<text class="soft" x="{x + 162}" y="{y + 5}">limit</text>'
    )


if __name__ == "__main__":
    PAGE.write_text(svg(), encoding="utf-8")
