/* activation.h - the activations of a perceptron and their slopes, one vector at a time.
 *
 *     relu(x) = max(x, 0)        gelu(x) = x s,  s = (1 + tanh u) / 2 = 1 / (1 + exp(-2u)),
 *                                                u = sqrt(2/pi) x (1 + 0.044715 x^2)
 *
 * With e = exp(-2|u|) <= 1, s is 1 / (1 + e) or e / (1 + e) by the sign of u, and s' = 2 u' e / (1 + e)^2: nothing
 * overflows but u itself, and nothing cancels. NaN reaches the result through the factor x.
 */
#ifndef KVQ_ACTIVATION_H
#define KVQ_ACTIVATION_H

#include "layers.h"
#include "part.h"
#include "simd.h"

#define GELU_SLOPE ((real)0.79788456080286535588) /* sqrt(2 / pi) */
#define GELU_CUBIC ((real)0.044715)

/* f(x) and f'(x); they share nearly all of their arithmetic, and what is not asked for is not computed. */
typedef struct {
    vec y, slope;
} curve;

INLINE curve relu_at(vec x)
{
    return (curve){where((ivec)(x <= (vec){0}), (vec){0}, x), keep((ivec)(x > (vec){0}), splat(1))};
}

INLINE curve gelu_at(vec x)
{
    const vec square = x * x, u = GELU_SLOPE * x * (1 + GELU_CUBIC * square);
    const vec v = u * (2 * LOG2_E), e = exp2_of_nonpositive(smallest(v, -v)), r = 1 / (1 + e);
    const vec s = where((ivec)(v < (vec){0}), e * r, r), ds = 2 * (e * r * r);
    return (curve){x * s, s + x * ds * (GELU_SLOPE * (1 + 3 * GELU_CUBIC * square))};
}

INLINE curve curve_at(int activation, vec x)
{
    if (activation == KVQ_RELU) return relu_at(x);
    if (activation == KVQ_GELU) return gelu_at(x);
    return (curve){x, splat(1)};
}

/* ---- a whole array ---------------------------------------------------------------------------- */
static void activate(int activation, idx count, const void *from, void *to)
{
    const real *x = from;
    real *y = to;
#define LOOP(ACTIVATION)                                                                       \
    for (idx i = 0; i < count; i += LANES)                                                     \
        store_part(y + i, curve_at(ACTIVATION, load_part(x + i, count - i, 0)).y, count - i)
    if (activation == KVQ_GELU) LOOP(KVQ_GELU);
    else LOOP(KVQ_RELU);
#undef LOOP
}

static void activate_backward(int activation, idx count, const void *gradient, const void *from, void *to)
{
    const real *dy = gradient, *x = from;
    real *dx = to;
#define LOOP(ACTIVATION)                                                                       \
    for (idx i = 0; i < count; i += LANES)                                                     \
        store_part(dx + i,                                                                     \
                   load_part(dy + i, count - i, 0) *                                           \
                       curve_at(ACTIVATION, load_part(x + i, count - i, 0)).slope,                   \
                   count - i)
    if (activation == KVQ_GELU) LOOP(KVQ_GELU);
    else LOOP(KVQ_RELU);
#undef LOOP
}

#endif
