"""docs/explorer in a real browser: its numbers against kvq_ref, and that a hand can use it.

Needs Playwright and a Chromium (``pip install '.[browser]'``), of the system or of Playwright's own; skipped without.
The page is opened from file://, and whatever is not file: is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS
from kvq_ref.lab.looks import LOOKS, THEMES

pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install '.[browser]'")

from browser import chromium, open_offline

PAGE = (Path(__file__).parents[2] / "docs" / "explorer" / "index.html").as_uri()
N_STATES = 100
State = dict[str, Any]


# ---- the browser ------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as launched:
        yield launched


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens the page with the network cut; whatever it complains of fails the test in the end."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_page(hash_: str = "", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        contexts.append(context)
        page = open_offline(context, complaints)
        page.goto(PAGE + hash_)
        settle(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def settle(page: Any) -> None:
    """Wait until what has changed is drawn and in the address, which waits for a pause of 0.2 s."""
    page.evaluate("() => new Promise((done) => setTimeout(() => requestAnimationFrame(done), 300))")


def points(page: Any) -> list[list[float]]:
    found: list[list[float]] = page.evaluate("explorer.state().points")
    return found


def middle(page: Any, j: int) -> tuple[float, float]:
    box = page.locator(".point").nth(j).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


# ---- the numbers --------------------------------------------------------------------


def features(x: np.ndarray, state: State) -> np.ndarray:
    """phi(x) as "What is computed" on the page has it, a row for each x."""
    x = x[:, None]
    one = np.ones_like(x) if state["constant"] else np.ones((len(x), 0))
    number, width = state["number"], state["width"]
    if state["kind"] == "line":
        return np.hstack([one, x / width])
    if state["kind"] == "fourier":
        p = np.arange(1, number + 1) / (number + 1)
        angles = x * np.log((1 + p) / (1 - p)) / width
        phi = np.hstack([one, np.cos(angles), np.sin(angles)])
    else:
        centres = np.linspace(-1.25, 1.25, number) if number > 1 else np.zeros(1)
        phi = np.hstack([one, np.exp(-((x - centres) ** 2) / (2 * width**2))])
    return phi / np.linalg.norm(phi, axis=1, keepdims=True)


def expected(x: np.ndarray, state: State) -> dict[str, np.ndarray]:
    """What kvq_ref predicts at x, form by form."""
    at, v = np.array(state["points"]).reshape(-1, 2).T
    q, k, v = features(x, state), features(at, state), v[:, None]
    alpha, scale, decay = state["alpha"], state["scale"], state["decay"]
    length2 = np.sum(k * k, axis=1, keepdims=True)
    beta = np.where(length2 > 0, state["beta"] / np.where(length2 > 0, length2, 1), 0)
    times = alpha if state["times"] else 1.0  # of q*: the forms that are linear in q take it there, the others in scale
    outputs = {
        "softmax_attention": kvq.softmax_attention(q, k, v, scale=scale),
        "expressive_attention": kvq.expressive_attention(q, k, v, scale=scale),
        "quadratic_attention": kvq.quadratic_attention(q, k, v, scale=scale),
        "taylor_attention": kvq.taylor_attention(q, k, v, scale=scale),
        "sigmoid_attention": kvq.sigmoid_attention(q, k, v, scale=scale, offset=-math.log(max(len(v), 1))),
        "local_linear_attention": kvq.local_linear_attention(q, k, v, alpha=alpha, scale=scale),
        "linear_attention": kvq.linear_attention(q, k, v),
        "intention": kvq.intention(times * q, k, v, alpha=alpha),
        "sigma_intention": kvq.sigma_intention(q, k, v, alpha=alpha, scale=times * scale),
        "expressive_intention": kvq.expressive_intention(q, k, v, alpha=alpha, scale=times * scale),
        "delta_rule": kvq.delta_rule(q, k, v, beta=beta),
        "gated_linear_attention": kvq.gated_linear_attention(q, k, v, decay=decay),
        "mesa_attention": kvq.mesa_attention(times * q, k, v, alpha=alpha, decay=decay),
    }
    return {name: out[:, 0] for name, out in outputs.items()}


def random_state(rng: np.random.Generator) -> State:
    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(math.log(low), math.log(high))))

    n = int(rng.integers(1, 13)) if rng.random() < 0.8 else int(rng.integers(13, 61))
    at = np.column_stack([rng.uniform(-1.25, 1.25, n), rng.uniform(-1.6, 1.6, n)]).round(4)
    return {
        "points": at.tolist(),
        "alpha": log_uniform(1e-4, 1e4),
        "scale": log_uniform(0.1, 100),
        "beta": float(rng.uniform(0, 1)),
        "decay": float(rng.uniform(0, 1)),
        "number": int(rng.integers(1, 13)),
        "width": log_uniform(0.05, 3),
        "times": bool(rng.random() < 0.5),
        "kind": str(rng.choice(["fourier", "fourier", "bumps", "line"])),
        "constant": bool(rng.random() < 0.7),
    }


def as_hash(state: State) -> str:
    pairs = ";".join(f"{x!r},{y!r}" for x, y in state["points"])
    numbers = {"a": "alpha", "s": "scale", "b": "beta", "g": "decay", "n": "number", "w": "width"}
    rest = "&".join(f"{key}={state[name]!r}" for key, name in numbers.items())
    return f"#p={pairs}&{rest}&t={int(state['times'])}&c={int(state['constant'])}&m={state['kind']}"


SET_HASH = """(hash) => new Promise((done) => {
  addEventListener("hashchange", () => done([explorer.state(), explorer.predictions()]), { once: true });
  location.hash = hash;
})"""


def test_predictions_are_those_of_kvq_ref(open_page: Any, rng: np.random.Generator) -> None:
    """Every form, at every query of the page, in 100 random states that the page reads from its address."""
    page = open_page()
    for _ in range(N_STATES):
        asked = random_state(rng)
        state, found = page.evaluate(SET_HASH, as_hash(asked))
        assert {name: state[name] for name in asked} == asked
        for name, out in expected(np.array(found["x"]), state).items():
            # 1e-6 is what the page promises: alpha = 1e-4 leaves (K^T K + alpha I)^-1 that much of double precision.
            # Relative where a sum of up to 60 values is large.
            where = f"{name} {as_hash(asked)}"
            np.testing.assert_allclose(found["forms"][name], out, rtol=1e-6, atol=1e-6, err_msg=where)


def test_no_points(open_page: Any) -> None:
    """Without a key every form predicts zero."""
    page = open_page("#p=")
    found = page.evaluate("explorer.predictions().forms")
    assert set(found) == set(FORMS)
    assert all(set(values) == {0} for values in found.values())


def test_drawn_as_everywhere_else(open_page: Any) -> None:
    """Every form is there, with the label, the family, the mark and the colours of kvq_ref's figures."""
    page = open_page()
    forms = page.evaluate("explorer.forms")
    assert {form["name"] for form in forms} == set(FORMS)
    for form in forms:
        look = LOOKS[form["name"]]
        assert (form["label"], form["score"]) == (look.label, look.score)
        assert form.get("preconditioned", False) == look.preconditioned
        assert form.get("sequential", False) == look.sequential
    for name, theme in page.evaluate("explorer.themes").items():
        assert theme == {key: getattr(THEMES[name], key) for key in theme}


# ---- the hand -------------------------------------------------------------------------


def test_mouse(open_page: Any) -> None:
    """A point follows the mouse; a click adds one, a double click takes it away."""
    page = open_page()
    before = points(page)
    x, y = middle(page, 3)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y - 30, steps=5)
    page.mouse.up()
    settle(page)
    after = points(page)
    assert after[:3] + after[4:] == before[:3] + before[4:]
    assert after[3][0] > before[3][0]
    assert after[3][1] > before[3][1]
    moved_x, moved_y = middle(page, 3)
    assert (moved_x, moved_y) == pytest.approx((x + 40, y - 30), abs=1)

    plot = page.locator(".u-over").first.bounding_box()
    page.mouse.click(plot["x"] + 0.1 * plot["width"], plot["y"] + 0.1 * plot["height"])
    assert len(points(page)) == len(before) + 1
    assert points(page)[-1] == pytest.approx([-1.0, 1.28], abs=0.02)
    page.mouse.dblclick(*middle(page, 7))
    assert points(page) == after


def test_keyboard(open_page: Any) -> None:
    """Tab reaches the points; arrows move, Enter adds, Delete removes."""
    page = open_page()
    before = points(page)
    page.locator("#range").focus()
    page.keyboard.press("Tab")  # the plot
    page.keyboard.press("Tab")  # its first point
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    after = points(page)
    assert after[0] == pytest.approx([before[0][0] + 0.02, before[0][1] - 0.1])
    page.keyboard.press("Enter")
    assert len(points(page)) == len(before) + 1
    page.keyboard.press("Delete")
    assert points(page) == after
    assert page.evaluate("document.activeElement.classList.contains('point')")

    page.locator("#dial-key").focus()
    angle = page.evaluate("explorer.state().dial.angle")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("explorer.state().dial.angle") == angle + 1
    assert page.locator("#dial-key").get_attribute("aria-label")


def test_touch(open_page: Any) -> None:
    """A finger drags a point; a tap adds one."""
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    before = points(page)
    page.locator("#plot").scroll_into_view_if_needed()
    x, y = middle(page, 2)
    touch = page.context.new_cdp_session(page)
    for kind, at in [("touchStart", 0), ("touchMove", 10), ("touchMove", 30), ("touchEnd", None)]:
        fingers = [] if at is None else [{"x": x + at, "y": y - at}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})
    settle(page)
    after = points(page)
    assert after[2][0] > before[2][0] + 0.05
    assert after[2][1] > before[2][1] + 0.05
    assert len(after) == len(before)

    plot = page.locator(".u-over").first.bounding_box()
    page.touchscreen.tap(plot["x"] + 0.8 * plot["width"], plot["y"] + 0.1 * plot["height"])
    assert len(points(page)) == len(before) + 1


def test_address_holds_the_view(open_page: Any) -> None:
    """Whatever is changed is in the address; opened again it is the same view, to the last digit."""
    page = open_page()
    page.get_by_role("button", name="Intention becomes linear attention").click()
    page.locator("#alpha").focus()
    page.keyboard.press("ArrowRight")
    page.locator("input[data-form=delta_rule]").check()
    page.locator("#kind").select_option("bumps")
    page.locator("#range").select_option("3")
    page.locator("#heat-form").select_option("mesa_attention")
    page.locator("#dial-key").focus()
    page.keyboard.press("PageUp")
    page.locator("#theme").click()
    page.locator("#random").click()
    settle(page)
    state = page.evaluate("explorer.state()")
    assert state["theme"] == "dark"
    assert "delta_rule" in state["forms"]
    hash_ = page.evaluate("location.hash")
    again = open_page(hash_)
    assert again.evaluate("explorer.state()") == state
    assert again.evaluate("explorer.predictions()") == page.evaluate("explorer.predictions()")
    assert again.evaluate("document.documentElement.dataset.theme") == "dark"


def test_any_address_is_survived(open_page: Any) -> None:
    """What cannot be read is left as it was, what is out of bounds is put inside."""
    numbers, words = "a=-3&s=1e99&n=2.6&w=&d=1", "m=cubes&f=softmax_attention,nobody&h=%E0%A4%A&theme=x"
    page = open_page(f"#p=nonsense;1,2,3;9,0.5&{numbers}&{words}")
    state = page.evaluate("explorer.state()")
    assert state["points"] == [[1.25, 0.5]]
    assert (state["alpha"], state["scale"], state["number"], state["width"]) == (1e-4, 100, 3, 0.4)
    assert (state["kind"], state["forms"], state["theme"]) == ("fourier", ["softmax_attention"], "")


def test_alpha_times_intention_becomes_linear(open_page: Any) -> None:
    """The distance that the page tells falls as 1/alpha."""
    page = open_page()
    page.get_by_role("button", name="Intention becomes linear attention").click()
    page.locator("#alpha").focus()
    distances = []
    for _ in range(2):
        page.keyboard.press("End" if not distances else "Home")
        settle(page)
        distances.append(page.locator("#distance").inner_text())
    assert "α = 10000" in distances[0]
    small, large = (float(text.split(": ")[1].split(",")[0].replace("−", "-").replace(" ", "")) for text in distances)
    assert small < 1e-3 < 0.1 < large


# ---- the looks --------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_narrow_screen(open_page: Any, theme: str) -> None:
    """At 390 pixels nothing is wider than the screen."""
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme=theme)
    for preset in range(page.locator("#presets button").count()):
        page.locator("#presets button").nth(preset).click()
        settle(page)
        wide = """() => [...document.querySelectorAll("body *")]
            .filter((node) => node.getBoundingClientRect().right > 390.5).map((node) => node.tagName + "#" + node.id)"""
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(wide) == []
    assert page.evaluate("document.documentElement.dataset.theme") == theme


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessibility(open_page: Any, theme: str) -> None:
    """axe-core finds nothing serious."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = open_page(color_scheme=theme)
    # preload: axe would fetch the stylesheets again, which a page from file:// may not
    violations = axe.Axe().run(page, options={"preload": False}).response["violations"]
    assert [x["id"] for x in violations if x["impact"] in ("serious", "critical")] == []


FRAMES_WHILE_DRAGGED = """() => new Promise((done) => {
  const node = document.querySelectorAll(".point")[25];
  const box = node.getBoundingClientRect();
  const at = (type, t) => node.dispatchEvent(new PointerEvent(type, { pointerId: 1, bubbles: true, button: 0,
    clientX: box.x + 14 + 60 * Math.sin(t), clientY: box.y + 14 + 60 * Math.sin(2 * t) }));
  node.setPointerCapture = () => {};
  at("pointerdown", 0);
  let began = null, frames = 0;
  const step = (now) => {
    began ??= now;
    if (now - began > 2000) { at("pointerup", 1); return done([frames, (now - began) / 1000]); }
    frames++;
    at("pointermove", (now - began) / 300);
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""


def test_fast_enough_to_drag(open_page: Any, rng: np.random.Generator, record_property: Any) -> None:
    """With 50 points the page is drawn anew at least 30 times a second while one of them is dragged.

    What a frame costs the page's thread is held to a 30th of a second on any machine; the rate itself wherever other
    work leaves it the processor.
    """
    at = ";".join(f"{x:.4f},{y:.4f}" for x, y in zip(np.linspace(-1.2, 1.2, 50), rng.uniform(-1, 1, 50), strict=True))
    page = open_page(f"#p={at}")
    before = points(page)
    page.evaluate(FRAMES_WHILE_DRAGGED)  # compiled, and in the caches
    clock = page.context.new_cdp_session(page)
    clock.send("Performance.enable", {"timeDomain": "threadTicks"})

    def processor_seconds() -> float:
        """Of the page's main thread, whatever else the machine does meanwhile."""
        metrics = clock.send("Performance.getMetrics")["metrics"]
        return float(next(x["value"] for x in metrics if x["name"] == "TaskDuration"))

    began = processor_seconds()
    frames, seconds = page.evaluate(FRAMES_WHILE_DRAGGED)
    a_second, work = frames / seconds, (processor_seconds() - began) / frames
    record_property("frames_per_second", a_second)
    record_property("milliseconds_of_work_per_frame", 1000 * work)
    print(f"{a_second:.1f} frames a second, {1000 * work:.1f} ms of work each")
    assert points(page) != before
    assert work <= 1 / 30
    if a_second < 30:
        pytest.skip(f"other work has the processor: {a_second:.0f} frames a second, {1000 * work:.0f} ms of work each")
