/* levels.h - the SIMD levels: every kernel source is compiled once per level and dtype.
 *
 * One such build exports one table of functions, named family_level_dtype: tiled_avx2_f32. What a
 * table holds is the family's affair (tiled.h, linear.h, ridge.h); which of them this CPU can run
 * is found here. */
#ifndef KVQ_LEVELS_H
#define KVQ_LEVELS_H

enum { KVQ_F32_INDEX = 0, KVQ_F64_INDEX = 1 };

typedef struct {
    const char *level;
    const void *tables[2]; /* by dtype: KVQ_F32_INDEX, KVQ_F64_INDEX */
} kvq_build;

/* The builds of a family, best level first, ended by a level NULL. */
#define KVQ_BUILD(family, level) {#level, {&family##_##level##_f32, &family##_##level##_f64}}
#define KVQ_EXTERN(family, level, type) extern const type family##_##level##_f32, family##_##level##_f64;
#ifdef KVQ_HAVE_AVX512
#define KVQ_IF_AVX512(...) __VA_ARGS__
#else
#define KVQ_IF_AVX512(...)
#endif
#ifdef KVQ_HAVE_AVX2
#define KVQ_IF_AVX2(...) __VA_ARGS__
#else
#define KVQ_IF_AVX2(...)
#endif
#define KVQ_DEFINE_BUILDS(family, type)                                                        \
    KVQ_IF_AVX512(KVQ_EXTERN(family, avx512, type))                                            \
    KVQ_IF_AVX2(KVQ_EXTERN(family, avx2, type))                                                \
    KVQ_EXTERN(family, baseline, type)                                                         \
    const kvq_build family##_builds[] = {KVQ_IF_AVX512(KVQ_BUILD(family, avx512), )            \
                                         KVQ_IF_AVX2(KVQ_BUILD(family, avx2), )                \
                                         KVQ_BUILD(family, baseline), {0}};

/* The levels in this build that this CPU can run, best first: index 0, 1, ... until NULL. */
const char *kvq_level(int index);

/* The level in use: the best one, or the one that the environment variable KVQ_REF_SIMD names. It is
 * read once, at first use. NULL if that level is unknown, or not to be had here. */
const char *kvq_chosen_level(void);

/* The table of a level by name, NULL if unknown or not to be had here. */
const void *kvq_find(const kvq_build *builds, const char *level, int dtype);

#endif
