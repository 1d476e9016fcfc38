/* layers.c - the kernels of the layers around attention, of one SIMD level and dtype.
 *
 * affine.h      y = f(x W + b): nearly all of the arithmetic of a training step
 * activation.h  f, and its slope
 * norm.h        layer norm
 * heads.h       copies between layouts, rotary positions, sums by token
 * loss.h        cross-entropy
 * update.h      optimisers
 */
#include "layers.h"

#include "activation.h"
#include "affine.h"
#include "heads.h"
#include "loss.h"
#include "norm.h"
#include "update.h"

extern const layers_table KVQ_TABLE(layers);
const layers_table KVQ_TABLE(layers) = {affine_forward, affine_backward, norm_forward, norm_backward,
                                        move_heads,     sgd,             adamw,        activate,
                                        activate_backward, cross_entropy, turn,        scatter};
