/* simd.h - the vector type of one (SIMD level, dtype) pair, and the few operations on it.
 *
 * Every kernel source is compiled once per level and dtype (see meson.build), with
 *     -DKVQ_LEVEL_AVX512 | -DKVQ_LEVEL_AVX2 | -DKVQ_LEVEL_BASELINE
 *     -DKVQ_F32 | -DKVQ_F64
 *     -DKVQ_BUILD_NAME=avx512_f32, ..., which ends the name of the table that it exports
 * Arithmetic uses the vector extensions of GCC and Clang, so the same lines serve x86 and ARM.
 * Intrinsics appear only where the extensions have no word for it: maximum and minimum.
 */
#ifndef KVQ_SIMD_H
#define KVQ_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "check.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

typedef ptrdiff_t idx;

#define KVQ_JOIN_(a, b) a##_##b
#define KVQ_JOIN(a, b) KVQ_JOIN_(a, b)
#define KVQ_TABLE(family) KVQ_JOIN(family, KVQ_BUILD_NAME)

#define INLINE static inline __attribute__((always_inline, unused))
#define NOINLINE static __attribute__((noinline, unused))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* ---- the level: bytes in a vector, and the register block that its register file holds ----------
 * A block of ROWS x COLUMNS accumulators, plus COLUMNS vectors and one broadcast, must fit:
 * 32 registers take 8 x 3 (+ 4), 16 registers take 4 x 3 (+ 4). */
#if defined(KVQ_LEVEL_AVX512)
#define VECTOR_BYTES 64
#define BLOCK_ROWS 8
#elif defined(KVQ_LEVEL_AVX2)
#define VECTOR_BYTES 32
#define BLOCK_ROWS 4
#elif defined(KVQ_LEVEL_BASELINE)
#define VECTOR_BYTES 16
#if defined(__aarch64__)
#define BLOCK_ROWS 8
#else
#define BLOCK_ROWS 4
#endif
#else
#error "compile with one of -DKVQ_LEVEL_AVX512, -DKVQ_LEVEL_AVX2, -DKVQ_LEVEL_BASELINE"
#endif
#define BLOCK_COLUMNS 3

/* ---- the dtype ------------------------------------------------------------------------------- */
#if defined(KVQ_F64)
typedef double real;
typedef uint64_t bits;
#define LANES (VECTOR_BYTES / 8)
#define REAL_LOWEST (-1.7976931348623157e308)
#define REAL_TINY 2.2250738585072014e-308 /* smallest normal number */
#define REAL_EPSILON 2.220446049250313e-16
#define REAL_HUGE_SCORE 1e150             /* its square is finite, and 1 + square == square */
#define REAL_RESCUE 18446744073709551616.0
#elif defined(KVQ_F32)
typedef float real;
typedef uint32_t bits;
#define LANES (VECTOR_BYTES / 4)
#define REAL_LOWEST (-3.40282347e38f)
#define REAL_TINY 1.17549435e-38f
#define REAL_EPSILON 1.1920929e-7f
#define REAL_HUGE_SCORE 1e18f
#define REAL_RESCUE 18446744073709551616.0f
#else
#error "compile with -DKVQ_F32 or -DKVQ_F64"
#endif
#define REAL_INFINITY ((real)__builtin_inf())
#define LOG2_E ((real)1.4426950408889634074)

typedef real vec __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef bits ivec __attribute__((vector_size(VECTOR_BYTES), may_alias));
/* The same vector at an address that is only aligned for one element. */
typedef real vec_unaligned
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

INLINE vec load(const real *p) { return *(const vec_unaligned *)p; }
INLINE void store(real *p, vec x) { *(vec_unaligned *)p = x; }
INLINE vec splat(real x) { return x - (vec){0}; } /* x - 0, not x + 0: keeps the sign of -0.0 */

/* where(mask, a, b): mask comes from a comparison, all ones or all zeros in each lane. */
INLINE vec where(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
INLINE vec keep(ivec mask, vec a) { return (vec)(mask & (ivec)a); }

/* sum + p x and p x, where nothing comes of an x that p = 0 makes invisible, be it infinite. */
#if defined(KVQ_LEVEL_AVX512) && defined(KVQ_F32)
INLINE vec add_seen(vec sum, vec p, vec x)
{
    const __mmask16 seen = _mm512_cmp_ps_mask((__m512)p, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    return (vec)_mm512_mask3_fmadd_ps((__m512)p, (__m512)x, (__m512)sum, seen);
}
INLINE vec times_seen(vec p, vec x)
{
    const __mmask16 seen = _mm512_cmp_ps_mask((__m512)p, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    return (vec)_mm512_maskz_mul_ps(seen, (__m512)p, (__m512)x);
}
#else
INLINE vec add_seen(vec sum, vec p, vec x) { return sum + keep((ivec)(p != 0), p * x); }
INLINE vec times_seen(vec p, vec x) { return keep((ivec)(p != 0), p * x); }
#endif

/* largest(a, b) and smallest(a, b) return b where a is NaN: put the bound second, and the bound
 * wins over NaN. */
#if defined(KVQ_LEVEL_AVX512) && defined(KVQ_F32)
INLINE vec largest(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec smallest(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(KVQ_LEVEL_AVX512)
INLINE vec largest(vec a, vec b) { return (vec)_mm512_max_pd((__m512d)a, (__m512d)b); }
INLINE vec smallest(vec a, vec b) { return (vec)_mm512_min_pd((__m512d)a, (__m512d)b); }
#elif defined(KVQ_LEVEL_AVX2) && defined(KVQ_F32)
INLINE vec largest(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vec smallest(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined(KVQ_LEVEL_AVX2)
INLINE vec largest(vec a, vec b) { return (vec)_mm256_max_pd((__m256d)a, (__m256d)b); }
INLINE vec smallest(vec a, vec b) { return (vec)_mm256_min_pd((__m256d)a, (__m256d)b); }
#elif defined(__SSE2__) && defined(KVQ_F32)
INLINE vec largest(vec a, vec b) { return (vec)_mm_max_ps((__m128)a, (__m128)b); }
INLINE vec smallest(vec a, vec b) { return (vec)_mm_min_ps((__m128)a, (__m128)b); }
#elif defined(__SSE2__)
INLINE vec largest(vec a, vec b) { return (vec)_mm_max_pd((__m128d)a, (__m128d)b); }
INLINE vec smallest(vec a, vec b) { return (vec)_mm_min_pd((__m128d)a, (__m128d)b); }
#else
INLINE vec largest(vec a, vec b) { return where((ivec)(a > b), a, b); }
INLINE vec smallest(vec a, vec b) { return where((ivec)(a < b), a, b); }
#endif

/* 1 / x for a normal x of at most REAL_HUGE_SCORE squared. Where an instruction knows 14 bits of it, a step
 * of Newton's doubles them: three operations for a division of ten cycles. */
#if defined(KVQ_LEVEL_AVX512) && defined(KVQ_F32)
INLINE vec inverse_of(vec x)
{
    const vec guess = (vec)_mm512_rcp14_ps((__m512)x);
    return guess + guess * (1 - x * guess);
}
#else
INLINE vec inverse_of(vec x) { return 1 / x; }
#endif

/* ---- 2^x for x <= 0 -----------------------------------------------------------------------------
 * x = n + f with n the nearest integer, so |f| <= 1/2 and both parts are exact; 2^f is a minimax
 * polynomial with constant term exactly 1 (2^0 = 1 exactly, hence one visible key returns its v
 * exactly). Scores arrive in units of log2 already, so no second reduction word is needed.
 *
 * Adding `magic` rounds x to an integer and leaves n - FLOOR in the low bits of the sum; the shift
 * moves that number into the exponent field. The field holds 2^(n-1), and the polynomial carries
 * the missing factor 2. At the floor the field is 0, which is the number 0: results below the range
 * are exact zeros and never denormals, which would cost 2.5x to 10x. */
INLINE vec exp2_of_nonpositive(vec x)
{
#if defined(KVQ_F64)
    static const real c[] = {2.0,
                             1.3862943611198906516,
                             0.48045301391820262518,
                             0.11100821732964016626,
                             0.019236258215188241279,
                             0.0026667116293549297893,
                             0.00030807060914222722843,
                             0.000030505466986191879516,
                             2.6430870565361326278e-6,
                             2.035639917289581724e-7,
                             1.4147566368916632538e-8,
                             8.8695378572525517657e-10}; /* relative error 3.4e-18 */
    enum { DEGREE = 11, MANTISSA_BITS = 52 };
    const real floor_ = -1022, magic = 6755399441055744.0 + 1022.0; /* 1.5 * 2^52 */
#else
    static const real c[] = {2.0f,
                             1.3862939552050412455f,
                             0.48044484170990821633f,
                             0.11101467474492677184f,
                             0.019343025279676039248f,
                             0.0026529458191722540676f}; /* relative error 9.2e-8 */
    enum { DEGREE = 5, MANTISSA_BITS = 23 };
    const real floor_ = -126, magic = 12582912.0f + 126.0f; /* 1.5 * 2^23 */
#endif
    x = largest(x, splat(floor_));
    const vec shifted = x + magic;
    const vec f = x - (shifted - magic);
    vec p = splat(c[DEGREE]);
    UNROLL for (int k = DEGREE - 1; k >= 0; k--) p = p * f + c[k];
    return p * (vec)((ivec)shifted << MANTISSA_BITS);
}

/* ---- transposing LANES x LANES numbers in registers ---------------------------------------------
 * A vector is made of 128-bit blocks of BLOCK numbers, and instructions that stay inside blocks are
 * the cheap ones. So first BLOCK x BLOCK pieces are transposed inside the blocks, by log2(BLOCK)
 * rounds of a perfect shuffle (row r zipped with row r + BLOCK/2); then whole blocks are moved, by
 * log2(BLOCKS) rounds of its inverse (even blocks of two rows, odd blocks of two rows). */
#define BLOCK (16 / (int)sizeof(real))
#define BLOCKS (VECTOR_BYTES / 16)
#define PICK(...) __builtin_shufflevector(a, b, __VA_ARGS__)
#if LANES == 16
INLINE vec zip_low(vec a, vec b)
{
    return (vec)PICK(0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
INLINE vec zip_high(vec a, vec b)
{
    return (vec)PICK(2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
INLINE vec even_blocks(vec a, vec b)
{
    return (vec)PICK(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
}
INLINE vec odd_blocks(vec a, vec b)
{
    return (vec)PICK(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
#elif LANES == 8 && defined(KVQ_F32)
INLINE vec zip_low(vec a, vec b) { return (vec)PICK(0, 8, 1, 9, 4, 12, 5, 13); }
INLINE vec zip_high(vec a, vec b) { return (vec)PICK(2, 10, 3, 11, 6, 14, 7, 15); }
INLINE vec even_blocks(vec a, vec b) { return (vec)PICK(0, 1, 2, 3, 8, 9, 10, 11); }
INLINE vec odd_blocks(vec a, vec b) { return (vec)PICK(4, 5, 6, 7, 12, 13, 14, 15); }
#elif LANES == 4 && defined(KVQ_F32)
INLINE vec zip_low(vec a, vec b) { return (vec)PICK(0, 4, 1, 5); }
INLINE vec zip_high(vec a, vec b) { return (vec)PICK(2, 6, 3, 7); }
#elif LANES == 8
INLINE vec zip_low(vec a, vec b) { return (vec)PICK(0, 8, 2, 10, 4, 12, 6, 14); }
INLINE vec zip_high(vec a, vec b) { return (vec)PICK(1, 9, 3, 11, 5, 13, 7, 15); }
INLINE vec even_blocks(vec a, vec b) { return (vec)PICK(0, 1, 4, 5, 8, 9, 12, 13); }
INLINE vec odd_blocks(vec a, vec b) { return (vec)PICK(2, 3, 6, 7, 10, 11, 14, 15); }
#elif LANES == 4
INLINE vec zip_low(vec a, vec b) { return (vec)PICK(0, 4, 2, 6); }
INLINE vec zip_high(vec a, vec b) { return (vec)PICK(1, 5, 3, 7); }
INLINE vec even_blocks(vec a, vec b) { return (vec)PICK(0, 1, 4, 5); }
INLINE vec odd_blocks(vec a, vec b) { return (vec)PICK(2, 3, 6, 7); }
#elif LANES == 2
INLINE vec zip_low(vec a, vec b) { return (vec)PICK(0, 2); }
INLINE vec zip_high(vec a, vec b) { return (vec)PICK(1, 3); }
#endif
#undef PICK

INLINE void transpose_registers(vec x[LANES])
{
    vec y[LANES];
    UNROLL for (int round = 1; round < BLOCK; round *= 2)
    {
        UNROLL for (int g = 0; g < LANES; g += BLOCK)
            UNROLL for (int r = 0; r < BLOCK / 2; r++)
            {
                y[g + 2 * r] = zip_low(x[g + r], x[g + r + BLOCK / 2]);
                y[g + 2 * r + 1] = zip_high(x[g + r], x[g + r + BLOCK / 2]);
            }
        UNROLL for (int r = 0; r < LANES; r++) x[r] = y[r];
    }
#if VECTOR_BYTES > 16
    UNROLL for (int round = 1; round < BLOCKS; round *= 2)
    {
        UNROLL for (int i = 0; i < BLOCK; i++)
            UNROLL for (int g = 0; g < BLOCKS / 2; g++)
            {
                const vec a = x[2 * g * BLOCK + i], b = x[(2 * g + 1) * BLOCK + i];
                y[g * BLOCK + i] = even_blocks(a, b);
                y[(g + BLOCKS / 2) * BLOCK + i] = odd_blocks(a, b);
            }
        UNROLL for (int r = 0; r < LANES; r++) x[r] = y[r];
    }
#endif
}

#endif
