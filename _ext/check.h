/* check.h - assertions of the kernels. Plain C. */
#ifndef KVQ_CHECK_H
#define KVQ_CHECK_H

/* -Dbounds_check=true turns these on. They guard index arithmetic and cost a few percent. */
#ifdef KVQ_BOUNDS_CHECK
#include <stdio.h>
#include <stdlib.h>
#define KVQ_ASSERT(condition)                                                                  \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);            \
            abort();                                                                           \
        }                                                                                      \
    } while (0)
#else
#define KVQ_ASSERT(condition) ((void)0)
#endif

#endif
