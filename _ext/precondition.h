/* precondition.h - q*_t = H_t^-1 q_t, where H_t sums over the keys that token t sees.
 *
 * All queries see all keys: one elimination, and the queries are right-hand sides.
 *
 * Causal: H_t grows by k_t k_t^T at every token, but is eliminated once a chunk only. With H of the
 * tokens before the chunk, and K, Q the rows of the chunk, Woodbury's identity says
 *
 *     q*_t = H^-1 (q_t - K_t^T x_t),    (I + A)_t x_t = (K H^-1 q_t)_t,    A = K H^-1 K^T
 *
 * where ( )_t keeps the first t + 1 rows and columns. All these small systems are served by one
 * elimination I + A = U^T U, for the leading part of a Cholesky factor is the factor of the leading
 * part: forward substitution for all t at once, then zeros below row t, then back substitution.
 * That is recursive least squares, d tokens at a time. As H is a fresh sum and a fresh elimination
 * in every chunk, nothing drifts.
 *
 * x_t is also K_t q*_t: the weights that token t gives to the keys of its chunk.
 *
 * Backward, with y_t = q*_t and u_t = H_t^-1 dy_t, found in just the same way:
 *     dq = u,   dk_j = -sum_{t sees j} (u_t (y_t.k_j) + y_t (u_t.k_j)),   dalpha = -sum_t u_t.y_t
 * Chunks are taken from the last to the first; N = sum_t u_t y_t^T of the later ones goes along.
 *
 * What a key adds to the knowledge of H is its leverage, k.H^-1 k. If that is large, as it is for the
 * first keys and a small alpha, then q*_t is a small difference of large terms: as many digits are lost
 * as the leverage has. From such a key to the end of its chunk each token has an elimination of its own.
 *
 * Row t does not depend, bit for bit, on any later token.
 */
#ifndef KVQ_PRECONDITION_H
#define KVQ_PRECONDITION_H

#include "fit.h"


#define LARGEST_LEVERAGE 150 /* costs two digits at worst */

/* ---- how tokens are cut ---------------------------------------------------------------------- */
/* Tokens with a regression of their own; the queries after them see all keys. */
INLINE idx prefix_tokens(const ridge_problem *P)
{
    return P->is_causal ? min_idx(P->Tq, P->Tk) : 0;
}

/* An elimination of d^3 / 6 for a chunk, and of chunk^3 / 6: equal sizes cost least. */
INLINE idx chunk_size(const ridge_problem *P)
{
    return P->d >= ROWS ? ROWS : P->d <= 16 ? 16 : (P->d + 15) / 16 * 16;
}

/* The row stride of arrays with tokens in the lanes: as many as are looked at at a time. */
INLINE idx lanes(const ridge_problem *P) { return P->is_causal ? padded(chunk_size(P)) : ROWS; }

INLINE idx chunks(const ridge_problem *P)
{
    return (prefix_tokens(P) + chunk_size(P) - 1) / chunk_size(P);
}

/* Before the first chunk H is alpha I, and needs no elimination. */
INLINE int is_scaled_identity(const ridge_problem *P, idx chunk) { return chunk == 0 && !P->gram; }

/* ---- a chunk: what backward needs of it, and U ------------------------------------------------ */
typedef struct {
    real *h;     /* (d, padded(d))  the sum before the chunk, without alpha */
    real *mt;    /* (d, w)      (H + alpha I)^-1 K^T */
    real *own;   /* (chunk, w)  I + A, eliminated */
    real *count; /* tokens that these serve; the rest have an elimination of their own */
    const real *u; /* (d, padded(d))  H + alpha I, eliminated; NULL where that is alpha I. Not kept. */
    real alpha;
    idx w; /* lanes(P) */
} chunk_factors;

INLINE idx chunk_numbers(const ridge_problem *P)
{
    return P->d * padded(P->d) + (P->d + chunk_size(P)) * lanes(P) + LANES;
}

static idx precondition_factors(const ridge_problem *P)
{
    return chunks(P) * chunk_numbers(P) + P->d * padded(P->d); /* at the end: H of all keys */
}

INLINE chunk_factors factors_at(const ridge_problem *P, idx entry, idx chunk, real *first)
{
    chunk_factors f;
    f.h = first + chunk * chunk_numbers(P);
    f.mt = f.h + P->d * padded(P->d);
    f.own = f.mt + P->d * lanes(P);
    f.count = f.own + chunk_size(P) * lanes(P);
    f.u = NULL;
    f.alpha = (real)P->alpha[entry];
    f.w = lanes(P);
    return f;
}

/* u = the elimination of h + alpha I; 0 where a pivot is noise. */
INLINE int eliminate_sum(idx d, const real *h, real alpha, real *u, real *diagonal)
{
    memcpy(u, h, (size_t)(d * padded(d)) * sizeof(real));
    add_to_diagonal(d, u, padded(d), alpha, diagonal);
    return eliminate(d, vectors(d), u, padded(d), diagonal, pivot_noise(d)) == d;
}

/* xt (d x tokens) <- H^-1 xt, with H as it was before the chunk */
INLINE void solve_tokens(idx n, idx d, const chunk_factors *f, real *xt)
{
    const idx w = f->w;
    if (f->u) {
        substitute_down(d, f->u, padded(d), vectors(n), xt, w);
        substitute_up(d, f->u, padded(d), vectors(n), xt, w);
        return;
    }
    for (idx r = 0; r < d; r++)
        for (idx t = 0; t < padded(n); t += LANES)
            store(xt + r * w + t, load(xt + r * w + t) / f->alpha);
}

/* Tokens from..n-1 of a chunk, each with its own elimination: y_t = H_t^-1 x_t, for rows x and y. h is the
 * sum before the chunk, and after it. Returns n, or the first token whose regression is singular. */
static idx solve_one_by_one(idx w, idx from, idx n, idx d, const real *k, real alpha, real *h, real *u,
                            real *diagonal, real *copy, real *xt, const real *x, real *y)
{
    add_gram(from, d, whole_vectors(from, d, k, copy), h, padded(d), ADD);
    for (idx t = from; t < n; t++) {
        add_gram(1, d, whole_vectors(1, d, k + t * d, copy), h, padded(d), ADD);
        if (!eliminate_sum(d, h, alpha, u, diagonal)) return t;
        turn(1, d, x + t * d, d, xt, w);
        substitute_down(d, u, padded(d), 1, xt, w);
        substitute_up(d, u, padded(d), 1, xt, w);
        transpose(d, 1, xt, w, y + t * d, d, 1);
    }
    return n;
}

/* ---- triangles: rows are keys s, lanes are tokens t, and t sees s if s <= t ------------------- */
/* c[s][t] = a_s . b_t for s <= t (and the rest of each vector). */
INLINE void upper_along_rows(idx w, idx n, idx depth, const real *a, idx a_stride, const real *bt, real *c)
{
    for (idx r = 0; r < n; r += LANES)
        product_along_rows(min_idx(LANES, n - r), vectors(n) - r / LANES, depth, a + r * a_stride,
                           a_stride, bt + r, w, c + r * w + r, w, OVERWRITE);
}

INLINE void upper_along_columns(idx w, idx n, idx depth, const real *at, idx a_stride, const real *bt,
                                idx b_stride, real *c)
{
    for (idx r = 0; r < n; r += LANES)
        product_along_columns(min_idx(LANES, n - r), vectors(n) - r / LANES, depth, at + r, a_stride,
                              bt + r, b_stride, c + r * w + r, w, OVERWRITE, NULL);
}

/* Zero what token t does not see, in the vector of tokens that begins at r. */
INLINE void hide_later_keys(idx w, idx n, idx r, real *c)
{
    ivec lane;
    for (int i = 0; i < LANES; i++) lane[i] = (bits)i;
    for (idx s = r; s < min_idx(r + LANES, n); s++)
        store(c + s * w + r, keep((ivec)(lane >= (bits)(s - r)), load(c + s * w + r)));
}

/* b[s][t] <- x_t[s] with (I + A)_t x_t = b_t, for the vector of tokens that begins at r. Keys
 * beyond it have no part in it. */
INLINE void weights_of_prefixes(idx w, idx n, idx r, const real *own, real *b)
{
    const idx keys = min_idx(n, r + LANES);
    substitute_down(keys, own, w, 1, b + r, w);
    hide_later_keys(w, n, r, b);
    substitute_up(keys, own, w, 1, b + r, w);
}

/* xt (d x tokens) <- H_t^-1 x_t for each token of a chunk; b, a chunk x w scratch, is left holding
 * k_s . (H_t^-1 x_t). */
INLINE void apply_inverses(idx n, idx d, const chunk_factors *f, real *xt, real *b)
{
    const idx w = f->w;
    upper_along_columns(w, n, d, f->mt, w, xt, w, b);
    solve_tokens(n, d, f, xt);
    for (idx r = 0; r < n; r += LANES) {
        const idx keys = min_idx(n, r + LANES);
        weights_of_prefixes(w, n, r, f->own, b);
        product_along_rows(d, 1, keys, f->mt, w, b + r, w, xt + r, w, SUBTRACT);
    }
}

/* ---- forward --------------------------------------------------------------------------------- */
typedef struct {
    real *h, *u;    /* (d, padded(d)) */
    real *factors;  /* of one chunk, where none are kept */
    real *xt;       /* (d, w)     queries in the lanes */
    real *b;        /* (ROWS, w) */
    real *k;        /* copy of ROWS rows */
    real *diagonal; /* (max(d, ROWS)) */
} precondition_scratch;

INLINE size_t precondition_layout(const ridge_problem *P, void *base, precondition_scratch *s)
{
    const idx d = P->d, w = lanes(P);
    carver c = {(uintptr_t)base};
    s->h = carve(&c, d * padded(d));
    s->u = carve(&c, d * padded(d));
    s->factors = carve(&c, P->factors ? 0 : chunk_numbers(P));
    s->xt = carve(&c, d * w);
    s->b = carve(&c, ROWS * w);
    s->k = carve(&c, d % LANES ? ROWS * padded(d) : 0);
    s->diagonal = carve(&c, d > ROWS ? d : ROWS);
    return c.next - (uintptr_t)base;
}

static size_t precondition_workspace_bytes(const void *problem)
{
    precondition_scratch unused;
    return precondition_layout(problem, NULL, &unused);
}

/* A <- the elimination of I + A; returns how many tokens come before one of too much leverage. */
INLINE idx eliminate_leverages(idx w, idx n, real *a, real *diagonal)
{
    for (idx s = 0; s < n; s++) {
        const real leverage = a[s * w + s];
        if (!(leverage < LARGEST_LEVERAGE)) n = s;
        else diagonal[s] = a[s * w + s] = 1 + leverage;
    }
    return eliminate(n, vectors(n), a, w, diagonal, 0);
}

/* The factors of a chunk of n tokens. */
static void factor_chunk(idx n, idx d, const real *k, chunk_factors *f, real *diagonal)
{
    const idx w = f->w;
    turn(n, d, k, d, f->mt, w);
    solve_tokens(n, d, f, f->mt);
    upper_along_rows(w, n, d, k, d, f->mt, f->own);
    *f->count = (real)eliminate_leverages(w, n, f->own, diagonal);
}

/* rows y_t <- H_t^-1 x_t for the first tokens of a chunk; s->xt and s->b are left holding y^T and k_s . y_t */
static void apply_to_rows(idx n, idx d, const chunk_factors *f, const real *x, real *xt, real *b, real *y)
{
    const idx w = f->w;
    turn(n, d, x, d, xt, w);
    apply_inverses(n, d, f, xt, b);
    transpose(d, n, xt, w, y, d, 1);
}

static void precondition_run(const void *problem, void *workspace, idx entry)
{
    const ridge_problem *P = problem;
    const idx d = P->d, Tq = P->Tq, Tk = P->Tk, prefix = prefix_tokens(P), h_size = d * padded(d);
    const idx w = lanes(P);
    const real *q = (const real *)P->q + entry * Tq * d;
    const real *k = (const real *)P->k + entry * Tk * d;
    const real alpha = (real)P->alpha[entry];
    real *q_star = (real *)P->result + entry * Tq * d;
    precondition_scratch s;
    precondition_layout(P, workspace, &s);
    real *kept = P->factors ? (real *)P->factors + entry * precondition_factors(P) : NULL;

    if (P->gram) load_state(P, entry, s.h, padded(d));
    else memset(s.h, 0, (size_t)h_size * sizeof(real));
    for (idx chunk = 0; chunk < chunks(P); chunk++) {
        const idx t = chunk * chunk_size(P), n = min_idx(chunk_size(P), prefix - t);
        chunk_factors f = factors_at(P, entry, kept ? chunk : 0, kept ? kept : s.factors);
        memcpy(f.h, s.h, (size_t)h_size * sizeof(real));
        if (!is_scaled_identity(P, chunk)) f.u = s.u;
        P->served[entry] = t;
        if (f.u && !eliminate_sum(d, s.h, alpha, s.u, s.diagonal)) return;
        factor_chunk(n, d, k + t * d, &f, s.diagonal);

        const idx together = (idx)*f.count;
        if (together > 0) apply_to_rows(together, d, &f, q + t * d, s.xt, s.b, q_star + t * d);
        if (together == n) {
            add_gram(n, d, whole_vectors(n, d, k + t * d, s.k), s.h, padded(d), ADD);
            continue;
        }
        const idx served = solve_one_by_one(lanes(P), together, n, d, k + t * d, alpha, s.h, s.u, s.diagonal,
                                            s.k, s.xt, q + t * d, q_star + t * d);
        P->served[entry] = t + served;
        if (served < n) return;
    }
    P->served[entry] = prefix;
    if (prefix == Tq) return;

    for (idx j = prefix; j < Tk; j += ROWS) {
        const idx n = min_idx(ROWS, Tk - j);
        add_gram(n, d, whole_vectors(n, d, k + j * d, s.k), s.h, padded(d), ADD);
    }
    chunk_factors f = factors_at(P, entry, kept ? chunks(P) : 0, kept ? kept : s.factors);
    if (!eliminate_sum(d, s.h, alpha, f.h, s.diagonal)) return;
    f.u = f.h;
    for (idx t = prefix; t < Tq; t += w) {
        const idx n = min_idx(w, Tq - t);
        turn(n, d, q + t * d, d, s.xt, w);
        solve_tokens(n, d, &f, s.xt);
        transpose(d, n, s.xt, w, q_star + t * d, d, 1);
    }
    P->served[entry] = Tq;
}

/* ---- backward -------------------------------------------------------------------------------- */
typedef struct {
    real *n, *both; /* (d, padded(d))  N = sum u y^T, and N + N^T */
    real *h, *factor; /* (d, padded(d))  the sum before a chunk, and its elimination */
    real *diagonal; /* (d) */
    real *ut, *yt;  /* (d, w) */
    real *uk, *yk;  /* (ROWS, w)   u_t . k_s and y_t . k_s */
    real *u, *y;    /* copies of ROWS rows */
    real *dk;       /* (ROWS, padded(d)) */
} precondition_backward_scratch;

INLINE size_t precondition_backward_layout(const ridge_problem *P, void *base,
                                           precondition_backward_scratch *s)
{
    const idx d = P->d, w = lanes(P);
    carver c = {(uintptr_t)base};
    s->n = carve(&c, d * padded(d));
    s->both = carve(&c, d * padded(d));
    s->h = carve(&c, d * padded(d));
    s->factor = carve(&c, d * padded(d));
    s->diagonal = carve(&c, d);
    s->ut = carve(&c, d * w);
    s->yt = carve(&c, d * w);
    s->uk = carve(&c, ROWS * w);
    s->yk = carve(&c, ROWS * w);
    s->u = carve(&c, d % LANES ? ROWS * padded(d) : 0);
    s->y = carve(&c, d % LANES ? ROWS * padded(d) : 0);
    s->dk = carve(&c, ROWS * padded(d));
    return c.next - (uintptr_t)base;
}

static size_t precondition_backward_workspace_bytes(const void *problem)
{
    precondition_backward_scratch unused;
    return precondition_backward_layout(problem, NULL, &unused);
}

INLINE void add_transposed(idx d, const real *n, real *both)
{
    transpose(d, d, n, padded(d), both, padded(d), 1);
    for (idx r = 0; r < d; r++)
        for (idx c = 0; c < padded(d); c += LANES) {
            real *at = both + r * padded(d) + c;
            store(at, load(at) + load(n + r * padded(d) + c));
        }
}

/* N += sum_t u_t y_t^T */
INLINE void add_outer(idx n, idx d, const real *u, const real *y,
                      precondition_backward_scratch *s)
{
    const real *rows_u = whole_vectors(n, d, u, s->u), *rows_y = whole_vectors(n, d, y, s->y);
    product_along_columns(d, vectors(d), n, rows_u, padded(d), rows_y, padded(d), s->n, padded(d),
                          ADD, NULL);
}

static void precondition_backward_run(const void *problem, void *workspace, idx entry)
{
    const ridge_problem *P = problem;
    const idx d = P->d, Tq = P->Tq, Tk = P->Tk, prefix = prefix_tokens(P), dp = padded(d);
    const idx w = lanes(P);
    const real *k = (const real *)P->k + entry * Tk * d;
    const real *y = (const real *)P->result + entry * Tq * d;
    const real *dy = (const real *)P->dresult + entry * Tq * d;
    real *u = (real *)P->dq + entry * Tq * d;
    real *dk = (real *)P->dk + entry * Tk * d;
    real *factors = (real *)P->factors + entry * precondition_factors(P);
    precondition_backward_scratch s;
    precondition_backward_layout(P, workspace, &s);
    if (P->served[entry] < P->Tq) return; /* what a wider type served, it differentiates */

    memset(s.n, 0, (size_t)(d * dp) * sizeof(real));
    chunk_factors all = factors_at(P, entry, chunks(P), factors);
    all.u = all.h;
    for (idx t = prefix; t < Tq; t += w) {
        const idx n = min_idx(w, Tq - t);
        turn(n, d, dy + t * d, d, s.ut, w);
        solve_tokens(n, d, &all, s.ut);
        transpose(d, n, s.ut, w, u + t * d, d, 1);
        add_outer(n, d, u + t * d, y + t * d, &s);
    }
    add_transposed(d, s.n, s.both);
    for (idx j = prefix; j < Tk; j += ROWS) { /* keys that only those queries see, or nobody */
        const idx n = min_idx(ROWS, Tk - j);
        product_along_rows(n, vectors(d), d, k + j * d, d, s.both, dp, s.dk, dp, OVERWRITE);
        put_rows(n, d, s.dk, dk + j * d, -1);
    }

    for (idx chunk = chunks(P) - 1; chunk >= 0; chunk--) {
        const idx t = chunk * chunk_size(P), n = min_idx(chunk_size(P), prefix - t);
        chunk_factors f = factors_at(P, entry, chunk, factors);
        const idx together = (idx)*f.count;
        if (!is_scaled_identity(P, chunk)) {
            eliminate_sum(d, f.h, f.alpha, s.factor, s.diagonal);
            f.u = s.factor;
        }
        if (together > 0) apply_to_rows(together, d, &f, dy + t * d, s.ut, s.uk, u + t * d);
        if (together < n) {
            memcpy(s.h, f.h, (size_t)(d * dp) * sizeof(real));
            solve_one_by_one(lanes(P), together, n, d, k + t * d, f.alpha, s.h, s.factor, s.diagonal, s.u, s.ut,
                             dy + t * d, u + t * d);
            turn(n, d, u + t * d, d, s.ut, w);
            upper_along_rows(w, n, d, k + t * d, d, s.ut, s.uk);
            for (idx r = 0; r < n; r += LANES) hide_later_keys(w, n, r, s.uk);
        }

        turn(n, d, y + t * d, d, s.yt, w);
        upper_along_rows(w, n, d, k + t * d, d, s.yt, s.yk);
        for (idx r = 0; r < n; r += LANES) hide_later_keys(w, n, r, s.yk);

        add_transposed(d, s.n, s.both);
        product_along_rows(n, vectors(d), d, k + t * d, d, s.both, dp, s.dk, dp, OVERWRITE);
        const real *rows_u = whole_vectors(n, d, u + t * d, s.u);
        const real *rows_y = whole_vectors(n, d, y + t * d, s.y);
        for (idx r = 0; r < n; r += LANES) { /* tokens before r do not see these keys */
            const idx keys = min_idx(LANES, n - r);
            product_along_rows(keys, vectors(d), n - r, s.yk + r * w + r, w,
                               rows_u + r * dp, dp, s.dk + r * dp, dp, ADD);
            product_along_rows(keys, vectors(d), n - r, s.uk + r * w + r, w,
                               rows_y + r * dp, dp, s.dk + r * dp, dp, ADD);
        }
        put_rows(n, d, s.dk, dk + t * d, -1);
        product_along_columns(d, vectors(d), n, rows_u, dp, rows_y, dp, s.n, dp, ADD, NULL);
    }

    double trace = 0;
    for (idx r = 0; r < d; r++) trace += (double)s.n[r * dp + r];
    P->dalpha[entry] = -trace;
    if (P->dgram) {
        add_transposed(d, s.n, s.both);
        put_rows(d, d, s.both, (real *)P->dgram + entry * d * d, (real)-0.5);
    }
}

#endif
