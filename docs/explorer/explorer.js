/* The page: one state, drawn again once a frame when it has changed. */
"use strict";

window.explorer = (() => {
  const { FORMS, NAMES, THEMES, X_MAX, MAX_POINTS, NUMBERS, DIAL, PRESETS, copy, clamp, round, encode, decode } = STATE;
  const $ = (id) => document.getElementById(id);
  const LABELS = Object.fromEntries(FORMS.map((form) => [form.name, form.label]));

  /* An even number, so that none is x = 0: with x as the only feature no key has weight there. */
  const N_QUERIES = 160;
  const GRID = Array.from({ length: N_QUERIES }, (_, i) => -X_MAX + (2 * X_MAX * i) / (N_QUERIES - 1));

  let state = decode(location.hash);
  let chosen = 0; // the point that buttons act on
  let alone = null; // the form whose curve stands out
  let drawn = {}; // weights of the last drawing, by form

  // ---- numbers --------------------------------------------------------------

  const colours = () => THEMES[document.documentElement.dataset.theme];

  const options = (s) => ({
    scale: s.scale,
    alpha: s.alpha,
    beta: s.beta,
    decay: s.decay,
    times: s.times ? s.alpha : 1,
    offset: -Math.log(Math.max(s.points.length, 1)),
  });

  /* {name: rows of weights, one for each query of the grid} */
  let queries = { of: "", Q: [] }; // they stay as they are while a point is dragged
  const weigh = (names) => {
    const K = state.points.map(([x]) => kvq.features(x, state));
    const of = [state.kind, state.number, state.width, state.constant].join();
    if (queries.of !== of) queries = { of, Q: GRID.map((x) => kvq.features(x, state)) };
    const { Q } = queries;
    return Object.fromEntries(names.map((name) => [name, kvq.weights(name, Q, K, options(state))]));
  };

  const predict = (rows) => {
    const values = state.points.map(([, y]) => y);
    return Array.from(rows, (w) => kvq.dot(w, values));
  };

  const format = (x) => {
    if (x === 0) return "0";
    const size = Math.abs(x);
    if (size >= 1000 && size < 1e5) return `${Math.round(x)}`.replace("-", "−");
    if (size < 1e-4 || size >= 1e5) return x.toExponential(1).replace("-", "−").replace("e", " e").replace("+", "");
    return x.toPrecision(3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "").replace("-", "−");
  };

  // ---- when to draw, when to write the URL ------------------------------------

  let frame = 0;
  let later = 0;
  /* The browser drops frequent changes of the address, so it waits for a pause. */
  const changed = () => {
    if (!frame) frame = requestAnimationFrame(draw);
    clearTimeout(later);
    later = setTimeout(writeHash, 200);
  };
  let known = location.hash; // as last read or written: another one is on its way in, and not to be written over
  const writeHash = () => {
    clearTimeout(later);
    const hash = encode(state);
    if (hash === location.hash || location.hash !== known) return;
    history.replaceState(null, "", hash);
    known = location.hash;
  };
  const edit = (change) => {
    Object.assign(state, change);
    changed();
  };
  const load = (next) => {
    state = next;
    chosen = clamp(chosen, 0, Math.max(state.points.length - 1, 0));
    changed();
  };

  // ---- the plot -----------------------------------------------------------------

  const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
  const axis = (more) => ({
    stroke: () => colours().ink,
    grid: { stroke: () => colours().faint + "66", width: 1 },
    ticks: { show: false },
    font: FONT,
    ...more,
  });

  /* hollow circle q, filled square q*, hollow triangle one key after the other, as in the figures of kvq_ref */
  const mark = (ctx, form, x, y, size, colour) => {
    ctx.beginPath();
    if (form.sequential) {
      ctx.moveTo(x, y - size);
      ctx.lineTo(x + size, y + 0.8 * size);
      ctx.lineTo(x - size, y + 0.8 * size);
      ctx.closePath();
    } else if (form.preconditioned) ctx.rect(x - 0.85 * size, y - 0.85 * size, 1.7 * size, 1.7 * size);
    else ctx.arc(x, y, size, 0, 2 * Math.PI);
    ctx.setLineDash([]);
    ctx.fillStyle = form.preconditioned && !form.sequential ? colour : colours().paper;
    ctx.strokeStyle = colour;
    ctx.fill();
    ctx.stroke();
  };

  const drawBand = (u) => {
    if (!state.points.length) return;
    const values = state.points.map(([, y]) => y);
    const top = u.valToPos(Math.max(...values), "y", true);
    const bottom = u.valToPos(Math.min(...values), "y", true);
    u.ctx.save();
    u.ctx.beginPath();
    u.ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    u.ctx.clip();
    u.ctx.fillStyle = colours().faint + "40";
    u.ctx.fillRect(u.bbox.left, top, u.bbox.width, bottom - top);
    u.ctx.restore();
  };

  const drawMarks = (u) => {
    const { ctx, bbox } = u;
    const px = devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    FORMS.forEach((form, i) => {
      const series = u.series[i + 1];
      if (!series.show) return;
      ctx.globalAlpha = alone && alone !== form.name ? 0.15 : 1;
      ctx.lineWidth = 1.6 * px;
      const apart = bbox.width < 500 * px ? 52 : 26;
      for (let at = 6 + ((i * 5) % 24); at < N_QUERIES; at += apart) {
        const y = u.data[i + 1][at];
        mark(ctx, form, u.valToPos(GRID[at], "x", true), u.valToPos(y, "y", true), 4 * px, colours()[form.score]);
      }
    });
    ctx.restore();
  };

  const nothing = new Array(N_QUERIES).fill(null);
  const height = () => clamp(Math.round($("plot").clientWidth * 0.52), 300, 440);
  const plot = new uPlot(
    {
      width: $("plot").clientWidth,
      height: height(),
      legend: { show: false },
      padding: [8, 8, 0, 0],
      cursor: { drag: { x: false, y: false }, points: { show: false }, y: false },
      scales: { x: { time: false, range: [-X_MAX, X_MAX] }, y: { range: () => [-state.range, state.range] } },
      axes: [axis({ size: 26, gap: 4 }), axis({ size: 44, gap: 4 })],
      series: [
        {},
        ...FORMS.map((form) => ({
          label: form.label,
          stroke: () => colours()[form.score],
          width: 2,
          pxAlign: 0,
          dash: form.dash,
          points: { show: false },
          show: state.forms.includes(form.name),
          alpha: 1,
        })),
      ],
      hooks: { drawClear: [drawBand], draw: [drawMarks], setCursor: [(u) => readAt(u.cursor.idx)] },
    },
    [GRID, ...FORMS.map(() => nothing)],
    $("plot"),
  );

  const readAt = (idx) => {
    for (const form of FORMS) {
      const row = drawn[form.name];
      const at = idx == null || !row || !state.forms.includes(form.name) ? null : plot.data[NAMES.indexOf(form.name) + 1][idx];
      const text = at == null ? "" : format(at);
      const cell = readings[form.name];
      if (cell && cell.textContent !== text) cell.textContent = text;
    }
  };

  // ---- the points -----------------------------------------------------------------

  const over = plot.over;
  over.tabIndex = 0;
  over.setAttribute("role", "group");
  over.setAttribute("aria-label", "Plot of the points and the curves. Enter adds a point.");

  const place = (x, y) => [round(clamp(x, -X_MAX, X_MAX)), round(clamp(y, -state.range, state.range))];
  const atPointer = (event) => {
    const box = over.getBoundingClientRect();
    return place(plot.posToVal(event.clientX - box.left, "x"), plot.posToVal(event.clientY - box.top, "y"));
  };
  const movePoint = (j, [x, y]) => {
    state.points[j] = [x, y];
    changed();
  };
  const addPoint = (at, focus = false) => {
    if (state.points.length >= MAX_POINTS) return toast(`${MAX_POINTS} points are all this page takes.`);
    state.points.push(at);
    chosen = state.points.length - 1;
    drawPoints();
    if (focus) nodes[chosen].focus();
    changed();
  };
  const removePoint = (j) => {
    if (!(j in state.points)) return;
    const focused = nodes.includes(document.activeElement);
    state.points.splice(j, 1);
    chosen = clamp(j, 0, Math.max(state.points.length - 1, 0));
    drawPoints();
    if (focused) (nodes[chosen] ?? over).focus();
    changed();
  };

  const nodes = [];
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const makeNode = () => {
    const node = document.createElement("div");
    node.className = "point";
    node.tabIndex = 0;
    node.setAttribute("role", "button");
    node.setAttribute("aria-roledescription", "point");
    node.append(document.createElement("span"));
    const me = () => nodes.indexOf(node);
    let grip = null; // from the pointer to the point's middle, while it is held
    let tapped = 0; // when it was last tapped
    node.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      node.focus({ preventScroll: true });
      node.setPointerCapture(event.pointerId);
      node.classList.add("held");
      const [x, y] = atPointer(event);
      const at = state.points[me()];
      grip = { dx: at[0] - x, dy: at[1] - y, moved: false, x: event.clientX, y: event.clientY };
    });
    node.addEventListener("pointermove", (event) => {
      if (!grip) return;
      grip.moved ||= Math.hypot(event.clientX - grip.x, event.clientY - grip.y) > 3;
      if (!grip.moved) return;
      const [x, y] = atPointer(event);
      movePoint(me(), place(x + grip.dx, y + grip.dy));
    });
    const release = (event) => {
      if (!grip) return;
      node.classList.remove("held");
      const tap = event.type === "pointerup" && !grip.moved;
      grip = null;
      if (tap && event.timeStamp - tapped < 400) removePoint(me());
      else tapped = tap ? event.timeStamp : 0;
    };
    node.addEventListener("pointerup", release);
    node.addEventListener("pointercancel", release);
    node.addEventListener("focus", () => {
      chosen = me();
      drawPoints();
    });
    node.addEventListener("keydown", (event) => {
      const step = STEPS[event.key];
      const [x, y] = state.points[me()];
      if (step) movePoint(me(), place(x + step[0] * (event.shiftKey ? 0.1 : 0.02), y + (step[1] * state.range * (event.shiftKey ? 0.1 : 0.02)) / 1.6));
      else if (event.key === "Delete" || event.key === "Backspace") removePoint(me());
      else if (event.key === "Enter") addPoint(place(x + (x > 1 ? -0.15 : 0.15), y), true);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    return node;
  };

  const drawPoints = () => {
    while (nodes.length < state.points.length) {
      nodes.push(makeNode());
      over.append(nodes.at(-1));
    }
    while (nodes.length > state.points.length) nodes.pop().remove();
    over.classList.toggle("many", nodes.length > 24);
    nodes.forEach((node, j) => {
      const [x, y] = state.points[j];
      const at = `translate(${plot.valToPos(x, "x")}px, ${plot.valToPos(clamp(y, -state.range, state.range), "y")}px)`;
      node.classList.toggle("chosen", j === chosen);
      const label = `Point ${j + 1} of ${nodes.length}: x ${x.toFixed(2)}, y ${y.toFixed(2)}`;
      if (node.at === at && node.label === label) return; // most stand still while one is dragged
      Object.assign(node, { at, label });
      node.style.transform = at;
      node.setAttribute("aria-label", label);
      node.firstChild.textContent = `${j + 1}`;
    });
    $("remove").disabled = nodes.length === 0;
  };

  let press = null;
  over.addEventListener("pointerdown", (event) => (press = event.target === over && !event.button ? event : null));
  over.addEventListener("pointercancel", () => (press = null));
  over.addEventListener("pointerup", (event) => {
    if (press && event.target === over && Math.hypot(event.clientX - press.clientX, event.clientY - press.clientY) < 5) addPoint(atPointer(event));
    press = null;
  });
  over.addEventListener("keydown", (event) => {
    if (event.target !== over || event.key !== "Enter") return;
    event.preventDefault();
    addInGap();
  });

  /* In the middle of the widest gap */
  const addInGap = () => {
    const xs = [-X_MAX, ...state.points.map(([x]) => x), X_MAX].sort((a, b) => a - b);
    let at = 1;
    for (let j = 2; j < xs.length; j++) if (xs[j] - xs[j - 1] > xs[at] - xs[at - 1]) at = j;
    addPoint(place((xs[at] + xs[at - 1]) / 2, 0), true);
  };

  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  const randomPoints = () => {
    const [slope, wave, phase] = [normal() * 0.4, 0.5 + Math.random() * 0.4, Math.random() * 6];
    const n = Math.max(state.points.length, 6);
    edit({
      points: Array.from({ length: n }, (_, j) => {
        const x = -1 + (2 * (j + Math.random())) / n;
        return place(x, clamp(slope * x + wave * Math.sin(4 * x + phase) + 0.08 * normal(), -1.5, 1.5));
      }),
    });
  };

  // ---- the heat map ---------------------------------------------------------------

  const NEGATIVE = [204, 121, 167];
  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const mix = (from, to, t) => from.map((x, c) => Math.round(x + (to[c] - x) * t));
  const css = (c) => `rgb(${c.join(" ")})`;
  const heatCanvas = $("heat");
  const cells = document.createElement("canvas");
  let heatRows = []; // which key each row shows, from the top
  let heatBox = { left: 0, width: 1, row: 1 };

  const drawHeat = () => {
    const W = drawn[state.heat];
    const form = FORMS[NAMES.indexOf(state.heat)];
    const n = state.points.length;
    const [paper, positive] = [rgb(colours().paper), rgb(colours()[form.score])];
    heatRows = state.points.map((_, j) => j).sort((a, b) => state.points[b][0] - state.points[a][0] || b - a);
    const px = devicePixelRatio;
    const row = n ? clamp(Math.floor(190 / n), 4, 24) : 24;
    const size = { width: heatCanvas.clientWidth, height: Math.max(n, 1) * row };
    heatBox = { left: plot.bbox.left / px, width: plot.bbox.width / px, row };
    const [wide, high] = [Math.round(size.width * px), Math.round(size.height * px)];
    if (heatCanvas.width !== wide || heatCanvas.height !== high) {
      heatCanvas.width = wide;
      heatCanvas.height = high;
      heatCanvas.style.height = `${size.height}px`;
    }
    const ctx = heatCanvas.getContext("2d");
    ctx.setTransform(px, 0, 0, px, 0, 0);
    ctx.clearRect(0, 0, size.width, size.height);
    let [low, top] = [0, 0];
    for (const w of W) for (const x of w) {
      if (x < low) low = x;
      if (x > top) top = x;
    }
    const most = Math.max(-low, top) || 1;
    if (n) {
      cells.width = N_QUERIES;
      cells.height = n;
      const image = new ImageData(N_QUERIES, n);
      const shades = Array.from({ length: 401 }, (_, i) => mix(paper, i < 200 ? NEGATIVE : positive, Math.abs(i - 200) / 200));
      let byte = 0;
      for (const j of heatRows) {
        for (let i = 0; i < N_QUERIES; i++) {
          const shade = shades[Math.round(200 + (200 * W[i][j]) / most)];
          for (let c = 0; c < 3; c++) image.data[byte++] = shade[c];
          image.data[byte++] = 255;
        }
      }
      cells.getContext("2d").putImageData(image, 0, 0);
      ctx.imageSmoothingEnabled = false;
      ctx.drawImage(cells, heatBox.left, 0, heatBox.width, n * row);
      ctx.fillStyle = colours().ink;
      ctx.font = "11px system-ui, 'DejaVu Sans', sans-serif";
      ctx.textAlign = "right";
      ctx.textBaseline = "middle";
      heatRows.forEach((j, at) => {
        if (row >= 11) ctx.fillText(`${j + 1}`, heatBox.left - 7, (at + 0.5) * row);
        const x = plot.valToPos(state.points[j][0], "x") + heatBox.left; // where the query is the key
        ctx.strokeStyle = colours().ink;
        ctx.lineWidth = 1;
        ctx.strokeRect(Math.round(x - 2) + 0.5, at * row + 0.5, 3, row - 1);
      });
    }
    ctx.strokeStyle = colours().faint;
    ctx.lineWidth = 1;
    ctx.strokeRect(heatBox.left + 0.5, 0.5, heatBox.width - 1, size.height - 1);
    $("heat-low").textContent = format(low);
    $("heat-high").textContent = format(top);
    const zero = top - low > 0 ? (-low / (top - low)) * 100 : 0;
    $("heat-bar").style.background =
      `linear-gradient(90deg, ${css(mix(paper, NEGATIVE, -low / most))}, ${css(paper)} ${zero}%, ${css(mix(paper, positive, top / most))})`;
    heatCanvas.setAttribute("aria-label", `Weights of ${form.label}: ${n} keys by ${N_QUERIES} queries, from ${format(low)} to ${format(top)}`);
  };
  heatCanvas.addEventListener("pointermove", (event) => {
    const box = heatCanvas.getBoundingClientRect();
    const i = Math.round(((event.clientX - box.left - heatBox.left) / heatBox.width) * (N_QUERIES - 1));
    const j = heatRows[Math.floor((event.clientY - box.top) / heatBox.row)];
    const inside = j !== undefined && i >= 0 && i < N_QUERIES && drawn[state.heat];
    $("heat-read").textContent = inside ? `query x = ${format(GRID[i])}, key ${j + 1}: ${format(drawn[state.heat][i][j])}` : "";
  });
  heatCanvas.addEventListener("pointerleave", () => ($("heat-read").textContent = ""));

  // ---- controls ---------------------------------------------------------------------

  const readings = {};
  const boxes = {};
  const FAMILIES = { softmax: "softmax and near it", expressive: "squares", linear: "linear" };
  const swatch = (form) => {
    const shape = form.sequential
      ? '<path d="M20 4.5 L24.5 13 L15.5 13 Z" fill="var(--paper)" stroke="currentColor"/>'
      : form.preconditioned
        ? '<rect x="16" y="5" width="8" height="8" fill="currentColor" stroke="currentColor"/>'
        : '<circle cx="20" cy="9" r="4" fill="var(--paper)" stroke="currentColor"/>';
    return `<svg width="40" height="18" aria-hidden="true" data-score="${form.score}" stroke-width="1.8">
      <path d="M1 9 H39" stroke="currentColor" stroke-width="2.2" stroke-dasharray="${form.dash.join(" ")}"/>${shape}</svg>`;
  };
  for (const [score, title] of Object.entries(FAMILIES)) {
    const set = document.createElement("fieldset");
    set.innerHTML = `<legend>${title}</legend>`;
    for (const form of FORMS.filter((each) => each.score === score)) {
      const label = document.createElement("label");
      label.className = "form";
      label.innerHTML = `<input type="checkbox">${swatch(form)}<span>${form.label}</span><output></output>`;
      readings[form.name] = label.querySelector("output");
      boxes[form.name] = label.querySelector("input");
      boxes[form.name].dataset.form = form.name;
      boxes[form.name].addEventListener("change", (event) => {
        const on = new Set(state.forms);
        if (event.target.checked) on.add(form.name);
        else on.delete(form.name);
        edit({ forms: NAMES.filter((name) => on.has(name)) });
      });
      const shine = (name) => () => {
        alone = name && state.forms.includes(name) ? name : null;
        changed();
      };
      label.addEventListener("pointerenter", shine(form.name));
      label.addEventListener("pointerleave", shine(null));
      set.append(label);
    }
    $("forms").append(set);
  }
  for (const form of FORMS) $("heat-form").append(new Option(form.label, form.name));

  const sliders = [];
  /* A slider over `get` and `set`; `log` for the logarithm to base 10 */
  const slider = (home, title, { min, max, step, log = false, get, set, show = format }) => {
    const label = document.createElement("label");
    label.className = "slider";
    label.innerHTML = `<span>${title}</span><output></output><input type="range">`;
    const input = label.querySelector("input");
    const [to, from] = log ? [Math.log10, (v) => Number((10 ** v).toPrecision(4))] : [(v) => v, (v) => round(v)];
    Object.assign(input, { min: to(min), max: to(max), step: step ?? (to(max) - to(min)) / 400 });
    input.addEventListener("input", () => {
      set(clamp(from(Number(input.value)), min, max));
      changed();
    });
    sliders.push(() => {
      const value = get();
      if (document.activeElement !== input || from(Number(input.value)) !== value) input.value = to(value);
      const text = show(value);
      label.querySelector("output").textContent = text;
      input.setAttribute("aria-valuetext", text);
    });
    home.append(label);
    return input;
  };
  const ofState = (name, more = {}) => ({ ...NUMBERS[name], get: () => state[name], set: (x) => edit({ [name]: x }), ...more });

  const alphaLine = document.createElement("div");
  alphaLine.className = "slider-line";
  $("main-sliders").append(alphaLine);
  slider(alphaLine, "α, ridge penalty", ofState("alpha")).id = "alpha";
  const sweep = document.createElement("button");
  sweep.type = "button";
  sweep.id = "sweep";
  sweep.textContent = "Sweep";
  sweep.setAttribute("aria-pressed", "false");
  alphaLine.append(sweep);
  slider($("main-sliders"), "scale of the scores", ofState("scale", { show: (s) => `${format(s)}, temperature ${format(1 / s)}` })).id = "scale";
  slider($("sliders"), "β, step of the delta rule", ofState("beta", { step: 0.01 })).id = "beta";
  slider($("sliders"), "decay of gated linear and mesa", ofState("decay", { step: 0.01 })).id = "decay";
  slider($("feature-sliders"), "width", ofState("width")).id = "width";
  slider($("feature-sliders"), "how many", ofState("number", { step: 1 })).id = "number";
  slider($("dial-sliders"), "length of q", { min: 0, max: DIAL.q[1], step: 0.05, get: () => state.dial.q, set: (x) => (state.dial.q = x) });
  slider($("dial-sliders"), "length of k", { min: 0, max: DIAL.k[1], step: 0.05, get: () => state.dial.k, set: (x) => (state.dial.k = x) });

  /* alpha from one end to the other, in nine seconds; a decade at a time for those who want less motion */
  let sweeping = 0;
  const stopSweep = () => {
    cancelAnimationFrame(sweeping);
    sweeping = 0;
    sweep.setAttribute("aria-pressed", "false");
    sweep.textContent = "Sweep";
  };
  sweep.addEventListener("click", () => {
    if (sweeping) return stopSweep();
    const [from, to] = [Math.log10(NUMBERS.alpha.min), Math.log10(NUMBERS.alpha.max)];
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const began = performance.now();
    sweep.setAttribute("aria-pressed", "true");
    sweep.textContent = "Stop";
    const step = (now) => {
      const t = clamp((now - began) / 9000, 0, 1);
      const at = from + (to - from) * t;
      edit({ alpha: Number((10 ** (calm ? Math.round(at) : at)).toPrecision(4)) });
      if (t < 1) sweeping = requestAnimationFrame(step);
      else stopSweep();
    };
    sweeping = requestAnimationFrame(step);
    return undefined;
  });
  $("alpha").addEventListener("pointerdown", () => sweeping && stopSweep());

  $("times").addEventListener("change", (event) => edit({ times: event.target.checked }));
  $("constant").addEventListener("change", (event) => edit({ constant: event.target.checked }));
  $("kind").addEventListener("change", (event) => edit({ kind: event.target.value }));
  $("heat-form").addEventListener("change", (event) => edit({ heat: event.target.value }));
  $("range").addEventListener("change", (event) => edit({ range: Number(event.target.value) }));
  $("add").addEventListener("click", addInGap);
  $("remove").addEventListener("click", () => removePoint(chosen));
  $("random").addEventListener("click", randomPoints);

  PRESETS.forEach((preset) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = preset.title;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      stopSweep();
      load({ ...copy(STATE.DEFAULT), ...copy(preset.state), dial: state.dial, theme: state.theme });
      tell(preset);
    });
    preset.button = button;
    $("presets").append(button);
  });
  const tell = (preset) => {
    for (const each of PRESETS) each.button.setAttribute("aria-pressed", String(each === preset));
    $("story").textContent = preset ? preset.story : "";
  };

  let toastTimer = 0;
  const toast = (text) => {
    $("toast").textContent = text;
    $("toast").classList.add("shown");
    clearTimeout(toastTimer);
    toastTimer = setTimeout(() => $("toast").classList.remove("shown"), 2500);
  };
  $("copy").addEventListener("click", async () => {
    writeHash();
    try {
      await navigator.clipboard.writeText(location.href);
      toast("Link copied.");
    } catch {
      toast("This view's link is in the address bar.");
    }
  });

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = () => {
    const theme = state.theme || (dark.matches ? "dark" : "light");
    $("theme").setAttribute("aria-pressed", String(theme === "dark"));
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    for (const node of document.querySelectorAll("[data-score]")) node.style.color = colours()[node.dataset.score];
  };
  dark.addEventListener("change", changed);
  $("theme").addEventListener("click", () => edit({ theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark" }));

  // ---- the dial -----------------------------------------------------------------------

  const DEGREES = Array.from({ length: 181 }, (_, i) => -180 + 2 * i);
  const RADIUS = 92; // of the longest arrow
  $("dial").innerHTML = `
    <circle r="${RADIUS}" fill="none" stroke="var(--line)"/>
    <path d="M-${RADIUS} 0 H${RADIUS} M0 -${RADIUS} V${RADIUS}" stroke="var(--line)"/>
    <path id="dial-arc" fill="none" stroke="var(--soft)" stroke-width="1.5"/>
    <line id="dial-q" stroke="var(--ink)" stroke-width="3" stroke-linecap="round"/><circle id="dial-q-end" r="4.5" fill="var(--ink)"/>
    <text id="dial-q-name">q</text>
    <line id="dial-k" stroke="var(--accent)" stroke-width="3" stroke-linecap="round"/>
    <g id="dial-key" role="slider" tabindex="0" aria-label="Angle between query and key" aria-valuemin="-180" aria-valuemax="180">
      <circle r="22" fill="transparent"/><circle r="9" fill="var(--accent)" stroke="var(--paper)" stroke-width="2"/></g>
    <text id="dial-k-name">k</text>`;
  const set = (id, attributes) => Object.entries(attributes).forEach(([name, value]) => $(id).setAttribute(name, value));
  const dialScore = (degrees) => {
    const quarter = degrees / 90;
    const cosine = Math.abs(quarter % 2) === 1 ? 0 : Math.cos((degrees * Math.PI) / 180); // orthogonal is orthogonal
    return state.dial.q * state.dial.k * cosine;
  };
  const dialPlot = new uPlot(
    {
      width: 300,
      height: 200,
      legend: { show: false },
      padding: [8, 20, 0, 0],
      cursor: { show: false },
      scales: { x: { time: false, range: [-180, 180] }, y: { range: [0, 1.05] } },
      axes: [
        axis({ size: 26, gap: 4, splits: [-180, -90, 0, 90, 180], values: (_, at) => at.map((d) => `${d}°`.replace("-", "−")) }),
        axis({ size: 34, gap: 4, splits: [0, 0.5, 1] }),
      ],
      series: [
        {},
        { stroke: () => colours().softmax, width: 2.2, pxAlign: 0, points: { show: false } },
        { stroke: () => colours().expressive, width: 2.2, pxAlign: 0, points: { show: false } },
      ],
      hooks: {
        draw: [
          (u) => {
            const px = devicePixelRatio;
            const x = u.valToPos(state.dial.angle, "x", true);
            u.ctx.save();
            u.ctx.strokeStyle = colours().ink;
            u.ctx.lineWidth = px;
            u.ctx.beginPath();
            u.ctx.moveTo(x, u.bbox.top);
            u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
            u.ctx.stroke();
            const z = dialScore(state.dial.angle);
            const length = state.dial.q * state.dial.k;
            for (const [y, colour] of [[Math.exp(z - length), colours().softmax], [kvq.f(z), colours().expressive]]) {
              u.ctx.beginPath();
              u.ctx.arc(x, u.valToPos(y, "y", true), 5 * px, 0, 2 * Math.PI);
              u.ctx.fillStyle = colour;
              u.ctx.fill();
            }
            u.ctx.restore();
          },
        ],
      },
    },
    [DEGREES, DEGREES, DEGREES],
    $("dial-plot"),
  );
  const drawDial = () => {
    const { angle, q, k } = state.dial;
    const radians = (angle * Math.PI) / 180;
    const unit = RADIUS / DIAL.q[1];
    const [kx, ky] = [k * unit * Math.cos(radians), -k * unit * Math.sin(radians)];
    set("dial-q", { x2: q * unit });
    set("dial-q-end", { cx: q * unit });
    set("dial-q-name", { x: q * unit + 8, y: 16 });
    set("dial-k", { x2: kx, y2: ky });
    set("dial-key", { transform: `translate(${kx} ${ky})`, "aria-valuenow": angle, "aria-valuetext": `${angle} degrees` });
    set("dial-k-name", { x: kx + 14 * Math.cos(radians) - 4, y: ky - 16 * Math.sin(radians) + (angle >= 0 ? 0 : 8) });
    set("dial-arc", { d: `M20 0 A20 20 0 0 ${angle > 0 ? 0 : 1} ${20 * Math.cos(radians)} ${-20 * Math.sin(radians)}` });
    const scores = DEGREES.map(dialScore);
    dialPlot.setData([DEGREES, scores.map((z) => Math.exp(z - q * k)), scores.map(kvq.f)]);
    const z = dialScore(angle);
    const c = colours();
    $("dial-read").innerHTML = `<span><b>angle</b> ${format(angle)}°</span><span><b>z</b> = ${format(z)}</span>
      <span><i class="swatch" style="background:${c.softmax}"></i><b>DPA</b> eᶻ = ${format(Math.exp(z))}, ${format(100 * Math.exp(z - q * k))} % of its largest (drawn)</span>
      <span><i class="swatch" style="background:${c.expressive}"></i><b>EA</b> z²/(1+z²) = ${format(kvq.f(z))}</span>`;
  };
  const turn = (degrees) => {
    const around = ((((Math.round(degrees) + 180) % 360) + 360) % 360) - 180;
    state.dial.angle = around === -180 && degrees > 0 ? 180 : around;
    changed();
  };
  let turning = false;
  const turnTo = (event) => {
    const box = $("dial").getBoundingClientRect();
    turn((Math.atan2(box.top + box.height / 2 - event.clientY, event.clientX - box.left - box.width / 2) * 180) / Math.PI);
  };
  $("dial").addEventListener("pointerdown", (event) => {
    event.preventDefault();
    turning = true;
    $("dial").setPointerCapture(event.pointerId);
    $("dial-key").focus({ preventScroll: true });
    turnTo(event);
  });
  $("dial").addEventListener("pointermove", (event) => turning && turnTo(event));
  for (const end of ["pointerup", "pointercancel"]) $("dial").addEventListener(end, () => (turning = false));
  $("dial-key").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: 1, ArrowUp: 1, ArrowRight: -1, ArrowDown: -1, PageUp: 15, PageDown: -15 }[event.key];
    const to = { Home: 0, End: 180 }[event.key];
    if (by === undefined && to === undefined) return;
    event.preventDefault();
    turn(to ?? state.dial.angle + by * (event.shiftKey ? 15 : 1));
  });

  // ---- all of it ------------------------------------------------------------------------

  let dialDrawn = "";
  const draw = () => {
    frame = 0;
    setTheme();
    const shown = new Set([...state.forms, state.heat]);
    drawn = weigh([...shown]);
    const data = [GRID];
    FORMS.forEach((form, i) => {
      const on = state.forms.includes(form.name);
      data.push(on ? predict(drawn[form.name]) : nothing);
      plot.series[i + 1].show = on;
      plot.series[i + 1].alpha = alone && alone !== form.name ? 0.15 : 1;
      boxes[form.name].checked = on;
    });
    plot.setData(data);
    queueMicrotask(() => {
      // uPlot sets its scales in a microtask of its own; what lies over it comes after
      drawPoints();
      drawHeat();
      readAt(plot.cursor.idx);
    });
    for (const update of sliders) update();
    $("times").checked = state.times;
    $("constant").checked = state.constant;
    $("kind").value = state.kind;
    $("number").disabled = state.kind === "line";
    $("heat-form").value = state.heat;
    if (![...$("range").options].some((option) => Number(option.value) === state.range)) $("range").add(new Option(state.range, state.range));
    $("range").value = String(state.range);

    const both = ["linear_attention", "intention"].every((name) => state.forms.includes(name));
    $("distance").hidden = !(both && state.times);
    if (both && state.times) {
      const [a, b] = ["linear_attention", "intention"].map((name) => data[NAMES.indexOf(name) + 1]);
      const apart = a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0);
      $("distance").textContent = `Largest distance between α · Intention and linear attention: ${format(apart)}, at α = ${format(state.alpha)}.`;
    }
    const dialNow = JSON.stringify([state.dial, document.documentElement.dataset.theme, dialPlot.width]);
    if (dialNow !== dialDrawn) drawDial();
    dialDrawn = dialNow;
  };

  const fitWidth = () => {
    plot.setSize({ width: $("plot").clientWidth, height: height() });
    dialPlot.setSize({ width: $("dial-plot").clientWidth, height: 200 });
    changed();
  };
  new ResizeObserver(fitWidth).observe($("plot"));
  addEventListener("hashchange", () => {
    stopSweep();
    known = location.hash;
    load(decode(known));
    tell(null);
  });

  setTheme();
  fitWidth();
  if (!location.hash) tell(PRESETS[0]);
  draw();

  /* For tests, and for the console */
  return {
    state: () => copy(state),
    link: () => location.href.replace(/#.*$/, "") + encode(state),
    /* {x, forms: {name: predictions}} of every form, drawn or not */
    predictions: () => {
      const weights = weigh(NAMES);
      return { x: GRID.slice(), forms: Object.fromEntries(NAMES.map((name) => [name, predict(weights[name])])) };
    },
    forms: FORMS,
    themes: THEMES,
  };
})();
