/* What the page shows, and how the URL says it.

   Everything is in one plain object; the hash holds all of it, in numbers as
   JavaScript prints them, so that a view comes back exactly:

     p=x,y;x,y...   points, in order         f=name,name...   forms that are drawn
     a=alpha  s=scale  b=beta  g=decay       t=1              times alpha
     m=kind  n=number  w=width  c=0|1        features: kind, how many, width, constant
     h=name         form of the heat map     r=half range of the y axis
     d=degrees,|q|,|k|   the dial            theme=light|dark, left out to follow the system   */
"use strict";

const STATE = (() => {
  /* label, family and marks are those of kvq_ref/lab/looks.py; the dash tells relatives of one colour apart */
  const FORMS = [
    { name: "softmax_attention", label: "softmax", score: "softmax", dash: [] },
    { name: "sigma_intention", label: "sigma-Intention", score: "softmax", preconditioned: true, dash: [13, 4] },
    { name: "local_linear_attention", label: "local linear", score: "softmax", dash: [8, 3, 2, 3] },
    { name: "taylor_attention", label: "Taylor", score: "softmax", dash: [6, 4] },
    { name: "sigmoid_attention", label: "sigmoid", score: "softmax", dash: [2, 3] },
    { name: "expressive_attention", label: "expressive", score: "expressive", dash: [] },
    { name: "expressive_intention", label: "expressive Intention", score: "expressive", preconditioned: true, dash: [13, 4] },
    { name: "quadratic_attention", label: "quadratic", score: "expressive", dash: [6, 4] },
    { name: "linear_attention", label: "linear", score: "linear", dash: [] },
    { name: "intention", label: "Intention", score: "linear", preconditioned: true, dash: [13, 4] },
    { name: "mesa_attention", label: "mesa", score: "linear", preconditioned: true, sequential: true, dash: [8, 3, 2, 3] },
    { name: "delta_rule", label: "delta rule", score: "linear", sequential: true, dash: [6, 4] },
    { name: "gated_linear_attention", label: "gated linear", score: "linear", sequential: true, dash: [2, 3] },
  ];
  const NAMES = FORMS.map((form) => form.name);

  /* paper, ink, faint and the three families, as in kvq_ref/lab/looks.py */
  const THEMES = {
    light: { paper: "#ffffff", ink: "#1d2129", faint: "#c9ced6", linear: "#009e73", softmax: "#0072b2", expressive: "#d55e00" },
    dark: { paper: "#171a20", ink: "#e6e8ec", faint: "#454b57", linear: "#2fc79a", softmax: "#56b4e9", expressive: "#ff9d5c" },
  };

  const X_MAX = 1.25;
  const MAX_POINTS = 60;
  /* key in the hash, and bounds, of every number */
  const NUMBERS = {
    alpha: { key: "a", min: 1e-4, max: 1e4, log: true },
    scale: { key: "s", min: 0.1, max: 100, log: true },
    beta: { key: "b", min: 0, max: 2 },
    decay: { key: "g", min: 0, max: 1 },
    number: { key: "n", min: 1, max: 12, whole: true },
    width: { key: "w", min: 0.05, max: 3, log: true },
    range: { key: "r", min: 0.5, max: 100 },
  };
  const DIAL = { angle: [-180, 180], q: [0, 3], k: [0, 3] };
  const KINDS = ["fourier", "bumps", "line"];

  const SINE = [[-0.9, -0.55], [-0.62, -0.95], [-0.3, -0.6], [0.05, 0.35], [0.3, 0.9], [0.62, 0.8], [0.9, 0.1]];
  const DEFAULT = {
    points: SINE,
    forms: ["softmax_attention", "expressive_attention", "linear_attention", "intention"],
    alpha: 0.01, scale: 10, beta: 1, decay: 0.8, times: false,
    kind: "fourier", number: 6, width: 0.4, constant: true,
    heat: "softmax_attention", range: 1.6,
    dial: { angle: 50, q: 2, k: 1.5 },
    theme: "",
  };

  const copy = (state) => JSON.parse(JSON.stringify(state));
  const clamp = (x, min, max) => Math.min(Math.max(x, min), max);
  const round = (x) => Math.round(x * 1e4) / 1e4;

  const encode = (state) => {
    const parts = [
      ["p", state.points.map((point) => point.join(",")).join(";")],
      ["f", state.forms.join(",")],
      ...Object.entries(NUMBERS).map(([name, { key }]) => [key, state[name]]),
      ["t", state.times ? 1 : 0],
      ["m", state.kind],
      ["c", state.constant ? 1 : 0],
      ["h", state.heat],
      ["d", [state.dial.angle, state.dial.q, state.dial.k].join(",")],
    ];
    if (state.theme) parts.push(["theme", state.theme]);
    return "#" + parts.map(([key, value]) => `${key}=${value}`).join("&");
  };

  /* A hash may come from anywhere: what cannot be read is as it was, what is out of bounds is put inside. */
  const decode = (hash, fallback = DEFAULT) => {
    const state = copy(fallback);
    const said = new Map(hash.replace(/^#/, "").split("&").filter((part) => part.includes("=")).map((part) => {
      const at = part.indexOf("=");
      const value = part.slice(at + 1);
      try {
        return [part.slice(0, at), decodeURIComponent(value)];
      } catch {
        return [part.slice(0, at), value];
      }
    }));
    const numbers = (text) => text.split(",").map((x) => (x.trim() === "" ? NaN : Number(x)));
    if (said.has("p")) {
      state.points = said.get("p").split(";").map(numbers)
        .filter((point) => point.length === 2 && point.every(Number.isFinite))
        .map(([x, y]) => [clamp(x, -X_MAX, X_MAX), clamp(y, -100, 100)])
        .slice(0, MAX_POINTS);
    }
    if (said.has("f")) state.forms = NAMES.filter((name) => said.get("f").split(",").includes(name));
    for (const [name, { key, min, max, whole }] of Object.entries(NUMBERS)) {
      const [x] = numbers(said.get(key) ?? "");
      if (Number.isFinite(x)) state[name] = clamp(whole ? Math.round(x) : x, min, max);
    }
    if (said.has("t")) state.times = said.get("t") === "1";
    if (said.has("c")) state.constant = said.get("c") === "1";
    if (KINDS.includes(said.get("m"))) state.kind = said.get("m");
    if (NAMES.includes(said.get("h"))) state.heat = said.get("h");
    const dial = numbers(said.get("d") ?? "");
    if (dial.length === 3 && dial.every(Number.isFinite)) {
      Object.keys(DIAL).forEach((name, i) => (state.dial[name] = clamp(dial[i], ...DIAL[name])));
    }
    state.theme = Object.hasOwn(THEMES, said.get("theme")) ? said.get("theme") : "";
    return state;
  };

  const PRESETS = [
    {
      title: "Start",
      story: "Four forms and seven points. Softmax and expressive attention average the values; linear attention adds them up; Intention fits them.",
      state: {},
    },
    {
      title: "Intention interpolates",
      story: "With a small α, least squares passes through every point. Raise α, and it lets go of them. Softmax attention is a mean, and passes through none.",
      state: { forms: ["softmax_attention", "intention"], alpha: 1e-4, number: 8, width: 0.4, heat: "intention" },
    },
    {
      title: "Intention becomes linear attention",
      story: "α times Intention tends to linear attention as α grows. Press Sweep: at large α the distance below falls as 1/α.",
      state: {
        forms: ["linear_attention", "intention"], alpha: 0.3, times: true, number: 8, width: 0.25, heat: "intention",
        points: [[-0.85, -0.5], [-0.5, -0.8], [-0.15, 0.1], [0.2, 0.6], [0.55, 0.75], [0.9, -0.3]],
      },
    },
    {
      title: "Softmax stays within the hull",
      story: "A mean with positive weights never leaves the range of the values, the pale band. Intention does, between the points and beyond them; local linear attention does too, by less.",
      state: {
        forms: ["softmax_attention", "local_linear_attention", "intention"], alpha: 0.001, scale: 20, number: 6, width: 0.4,
        points: [[-0.95, -0.7], [-0.7, 0.6], [-0.35, 0.7], [0.0, -0.65], [0.1, -0.7], [0.6, 0.7], [0.8, 0.2]],
        heat: "local_linear_attention",
      },
    },
    {
      title: "Expressive attention knows no sign",
      story: "x is the only feature here, so keys at x and −x point in opposite directions. A squared score cannot tell them apart: the curve at −x is the curve at x. Softmax attention tells them apart.",
      state: {
        forms: ["softmax_attention", "expressive_attention"], kind: "line", width: 0.5, constant: false, scale: 1.5,
        points: [[-0.95, 0.9], [-0.6, 0.55], [0.15, -0.9], [0.5, -0.2], [0.8, -0.45]], heat: "expressive_attention",
      },
    },
    {
      title: "Beyond the edge",
      story: "All keys lie on one side. Beyond them softmax attention levels off, for the mean of what it sees is all it has. Local linear attention goes on along the slope; its line is straight in the features, so it bends in x.",
      state: {
        forms: ["softmax_attention", "local_linear_attention"], kind: "fourier", number: 3, width: 3, scale: 100, alpha: 0.0001, constant: false,
        points: [[-1.1, -1.0], [-0.85, -0.7], [-0.6, -0.6], [-0.35, -0.25], [-0.1, -0.1], [0.15, 0.2]], heat: "local_linear_attention",
      },
    },
    {
      title: "A key comes again",
      story: "Points 3 and 4 have the same key and different values. The delta rule keeps the later, linear attention adds the two, Intention takes their mean.",
      state: {
        forms: ["linear_attention", "intention", "delta_rule"], kind: "fourier", number: 10, width: 0.15, alpha: 0.001, beta: 1,
        points: [[-0.8, 0.5], [0.8, -0.4], [0, 1.0], [0, 0.3]], heat: "delta_rule",
      },
    },
    {
      title: "All thirteen",
      story: "Every form at once. Point at a name to see its curve alone.",
      state: { forms: NAMES, range: 3, alpha: 0.05, scale: 6 },
    },
  ];

  return { FORMS, NAMES, THEMES, X_MAX, MAX_POINTS, NUMBERS, DIAL, DEFAULT, PRESETS, copy, clamp, round, encode, decode };
})();
