/* The attention forms in the browser, by their names in kvq_ref.

   Every form here is a sum of values, out_i = sum_j w_ij v_j, so each function
   gives the weights of one query: an array with a number for every key. The
   equations, their sources and their backward are in kvq_ref/forms; what is
   here is double precision, without masks, and held to kvq_ref by
   tests/explorer/test_explorer.py.

   A call has q, the query (Float64Array of d), K, the keys (n of them), and
   options. What no query changes, as a Cholesky factor, is found once, by
   prepare(). Plain script, not a module: modules do not load from file://. */
"use strict";

const kvq = (() => {
  // ---- small linear algebra -------------------------------------------------

  const dot = (a, b) => {
    let sum = 0;
    for (let c = 0; c < a.length; c++) sum += a[c] * b[c];
    return sum;
  };

  const divideBySum = (w) => {
    let sum = 0;
    for (const x of w) sum += x;
    return sum === 0 ? w : w.map((x) => x / sum); // no weight to give: zeros
  };

  /* sum_j c_j k_j k_j^T + alpha I */
  const gram = (K, d, alpha, c = null) => {
    const G = Array.from({ length: d }, () => new Float64Array(d));
    for (let j = 0; j < K.length; j++) {
      const k = K[j];
      for (let a = 0; a < d; a++) {
        const row = G[a];
        const ka = c === null ? k[a] : c[j] * k[a];
        for (let b = 0; b <= a; b++) row[b] += ka * k[b]; // the lower triangle is all that cholesky() reads
      }
    }
    for (let a = 0; a < d; a++) G[a][a] += alpha;
    return G;
  };

  /* L with L L^T = H, for H symmetric and positive definite */
  const cholesky = (H) => {
    const L = H.map((row) => new Float64Array(row.length));
    for (let a = 0; a < H.length; a++) {
      const row = L[a];
      for (let b = 0; b <= a; b++) {
        const other = L[b];
        let x = H[a][b];
        for (let c = 0; c < b; c++) x -= row[c] * other[c];
        row[b] = a === b ? Math.sqrt(x) : x / other[b];
      }
    }
    return L;
  };

  /* (L L^T)^-1 b */
  const solve = (L, b) => {
    const d = b.length;
    const x = b.slice();
    for (let a = 0; a < d; a++) {
      for (let c = 0; c < a; c++) x[a] -= L[a][c] * x[c];
      x[a] /= L[a][a];
    }
    for (let a = d - 1; a >= 0; a--) {
      for (let c = a + 1; c < d; c++) x[a] -= L[c][a] * x[c];
      x[a] /= L[a][a];
    }
    return x;
  };

  /* z_j = scale q.k_j */
  const scores = (q, K, scale = 1) => {
    const z = new Float64Array(K.length);
    for (let j = 0; j < K.length; j++) z[j] = scale * dot(q, K[j]);
    return z;
  };

  // ---- what a score becomes -------------------------------------------------

  /* exp(z) / sum exp(z). Shifting a row changes nothing once it is normalised, and keeps exp in range. */
  const softmax = (z) => {
    const largest = Math.max(...z);
    return divideBySum(z.map((x) => Math.exp(x - largest)));
  };

  /* f(z) = z^2 / (1 + z^2), in r = 1/z where |z| > 1 */
  const f = (z) => {
    const r2 = Math.abs(z) > 1 ? 1 / (z * z) : z * z;
    return Math.abs(z) > 1 ? 1 / (1 + r2) : r2 / (1 + r2);
  };

  // ---- the query as it is: q* = q -------------------------------------------

  /* w_ij = softmax_j(scale q_i.k_j) */
  const softmax_attention = (q, K, { scale }) => softmax(scores(q, K, scale));

  /* w_ij = f(z_ij) / sum_j f(z_ij),  f(z) = z^2 / (1 + z^2),  z_ij = scale q_i.k_j */
  const expressive_attention = (q, K, { scale }) => divideBySum(scores(q, K, scale).map(f));

  /* w_ij = z_ij^2 / sum_j z_ij^2. The largest score cancels; divided by it no square underflows. */
  const quadratic_attention = (q, K, { scale }) => {
    const z = scores(q, K, scale);
    const largest = z.reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1;
    return divideBySum(z.map((x) => (x / largest) ** 2));
  };

  /* w_ij = (1 + z_ij + z_ij^2/2) / sum_j (1 + z_ij + z_ij^2/2) */
  const taylor_attention = (q, K, { scale }) =>
    divideBySum(scores(q, K, scale).map((x) => ((1 + x) ** 2 + 1) / 2));

  /* w_ij = 1 / (1 + exp(-(z_ij + offset))): a sum, not a mean */
  const sigmoid_attention = (q, K, { scale, offset }) =>
    scores(q, K, scale).map((x) => 1 / (1 + Math.exp(-(x + offset))));

  /* p_ij = softmax_j(scale q_i.k_j),  mu_i = sum_j p_ij k_j,  c_ij = k_j - mu_i
     S_i  = sum_j p_ij c_ij c_ij^T + alpha I
     w_ij = p_ij (1 + c_ij . S_i^-1 (q_i - mu_i))                 a line fitted near the query */
  const roomForC = (K, d) => K.map(() => new Float64Array(d)); // used again by every query: most of the time went into it
  const local_linear_attention = (q, K, { scale, alpha }, C) => {
    const d = q.length;
    const p = softmax(scores(q, K, scale));
    const mu = new Float64Array(d);
    for (let j = 0; j < K.length; j++) for (let c = 0; c < d; c++) mu[c] += p[j] * K[j][c];
    for (let j = 0; j < K.length; j++) for (let c = 0; c < d; c++) C[j][c] = K[j][c] - mu[c];
    const r = q.map((x, c) => x - mu[c]);
    const y = solve(cholesky(gram(C, d, alpha, p)), r);
    return p.map((pj, j) => pj * (1 + dot(C[j], y)));
  };

  /* w_ij = q_i.k_j */
  const linear_attention = (q, K) => scores(q, K);

  // ---- the query in units of the keys: q*_i = (K^T K + alpha I)^-1 q_i -------

  const fit = (K, d, { alpha }) => cholesky(gram(K, d, alpha));

  /* `times` multiplies q*; 1, or alpha to see the limit alpha q* -> q */
  const precondition = (q, L, times) => solve(L, q).map((x) => times * x);

  /* w_ij = q*_i.k_j: ridge regression from keys to values, evaluated at the query */
  const intention = (q, K, { times = 1 }, L) => scores(precondition(q, L, times), K);

  /* w_ij = softmax_j(scale q*_i.k_j) */
  const sigma_intention = (q, K, { scale, times = 1 }, L) => softmax(scores(precondition(q, L, times), K, scale));

  /* w_ij = f(z_ij) / sum_j f(z_ij),  z_ij = scale q*_i.k_j */
  const expressive_intention = (q, K, { scale, times = 1 }, L) =>
    divideBySum(scores(precondition(q, L, times), K, scale).map(f));

  // ---- one key after the other ----------------------------------------------

  /* S_j = S_{j-1} + beta_j k_j (v_j - S_{j-1}^T k_j)^T,  out = S^T q,  beta_j = beta / |k_j|^2.
     Read from the end: v_j enters with beta_j k_j.r, where r is what the later steps have left of q. */
  const delta_rule = (q, K, { beta }) => {
    const r = q.slice();
    const w = new Float64Array(K.length);
    for (let j = K.length - 1; j >= 0; j--) {
      const k = K[j];
      const length2 = dot(k, k);
      w[j] = length2 > 0 ? (beta / length2) * dot(k, r) : 0;
      for (let c = 0; c < r.length; c++) r[c] -= w[j] * k[c];
    }
    return w;
  };

  /* What is left of key j at the end, if decay is taken off at every later key */
  const left = (n, decay) => Float64Array.from({ length: n }, (_, j) => decay ** (n - 1 - j));

  /* S_j = decay S_{j-1} + k_j v_j^T,  out = S^T q:   w_ij = decay^(n-1-j) q_i.k_j */
  const fade = (K, d, { decay }) => left(K.length, decay);
  const gated_linear_attention = (q, K, options, c) => scores(q, K).map((z, j) => c[j] * z);

  /* H = sum_j c_j k_j k_j^T,  c_j = decay^(n-1-j):   w_ij = c_j q_i (H + alpha I)^-1 k_j */
  const fitFading = (K, d, { alpha, decay }) => {
    const c = left(K.length, decay);
    return { c, L: cholesky(gram(K, d, alpha, c)) };
  };
  const mesa_attention = (q, K, { times = 1 }, { c, L }) => scores(precondition(q, L, times), K).map((z, j) => c[j] * z);

  const forms = {
    softmax_attention,
    taylor_attention,
    sigmoid_attention,
    local_linear_attention,
    sigma_intention,
    expressive_attention,
    quadratic_attention,
    expressive_intention,
    linear_attention,
    intention,
    mesa_attention,
    delta_rule,
    gated_linear_attention,
  };

  /* What all queries of a form share */
  const PREPARE = {
    intention: fit,
    sigma_intention: fit,
    expressive_intention: fit,
    mesa_attention: fitFading,
    gated_linear_attention: fade,
    local_linear_attention: roomForC,
  };
  const prepare = (name, K, d, options) => (name in PREPARE ? PREPARE[name](K, d, options) : null);

  /* The weights of every query, rows of Float64Array(n) */
  const weights = (name, Q, K, options) => {
    if (K.length === 0) return Q.map(() => new Float64Array(0));
    const shared = prepare(name, K, K[0].length, options);
    return Q.map((q) => forms[name](q, K, options, shared));
  };

  // ---- features: what makes a key of x ----------------------------------------

  /* phi(x), by its kind:

     fourier  (1, cos w_1 x, sin w_1 x, ..., cos w_R x, sin w_R x) / length,
              w_r = log((1 + p_r) / (1 - p_r)) / width,  p_r = r / (R + 1):
              quantiles of the logistic distribution, so that k(x).k(x') is a bump of the
              given width as R grows; the length is the same for all x
     bumps    (1, exp(-(x - c_1)^2 / (2 width^2)), ..., exp(-(x - c_R)^2 / (2 width^2))) / length,
              with the centres c_r even from -1.25 to 1.25, or c_1 = 0
     line     (1, x / width), of the length that it has

     constant = false leaves out the 1. */
  const features = (x, { kind, number, width, constant }) => {
    const phi = constant ? [1] : [];
    if (kind === "line") return Float64Array.from([...phi, x / width]);
    for (let r = 1; r <= number; r++) {
      if (kind === "fourier") {
        const p = r / (number + 1);
        const w = Math.log((1 + p) / (1 - p)) / width;
        phi.push(Math.cos(w * x), Math.sin(w * x));
      } else {
        const c = number === 1 ? 0 : -1.25 + (2.5 * (r - 1)) / (number - 1);
        phi.push(Math.exp(-((x - c) ** 2) / (2 * width * width)));
      }
    }
    const length = Math.sqrt(dot(phi, phi));
    return Float64Array.from(phi, (y) => y / length);
  };

  return { forms, weights, features, dot, f };
})();
