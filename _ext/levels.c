/* levels.c - which SIMD levels this build holds and this CPU can run. */
#include "levels.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {KVQ_IF_AVX512("avx512", ) KVQ_IF_AVX2("avx2", ) "baseline"};
enum { LEVELS = sizeof names / sizeof names[0] };

static int cpu_has(const char *level)
{
#if defined(KVQ_HAVE_AVX512)
    if (strcmp(level, "avx512") == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("fma");
#endif
#if defined(KVQ_HAVE_AVX2)
    if (strcmp(level, "avx2") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return strcmp(level, "baseline") == 0;
}

const char *kvq_level(int index)
{
    for (int i = 0; i < LEVELS; i++)
        if (cpu_has(names[i]) && index-- == 0) return names[i];
    return NULL;
}

const char *kvq_chosen_level(void)
{
    static const char *chosen; /* a race writes the same twice */
    if (chosen) return chosen;
    const char *wanted = getenv("KVQ_REF_SIMD");
    if (!wanted || !*wanted) return chosen = kvq_level(0);
    for (int i = 0; kvq_level(i); i++)
        if (strcmp(kvq_level(i), wanted) == 0) return chosen = kvq_level(i);
    return NULL;
}

const void *kvq_find(const kvq_build *builds, const char *level, int dtype)
{
    for (; builds->level; builds++)
        if (strcmp(builds->level, level) == 0 && cpu_has(level)) return builds->tables[dtype];
    return NULL;
}
