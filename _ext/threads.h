/* threads.h - a pass over a problem, as tasks that threads share out. Plain C: compiled once. */
#ifndef KVQ_THREADS_H
#define KVQ_THREADS_H

#include <stddef.h>

/* A pass is a number of independent tasks. Which thread runs a task never changes its result. */
typedef struct {
    ptrdiff_t (*tasks)(const void *problem);
    size_t (*workspace_bytes)(const void *problem); /* scratch of one thread */
    void (*run)(const void *problem, void *workspace, ptrdiff_t task);
} kvq_pass;

/* Multiply-adds for which a thread is worth taking, and for which one is worth waking; measured. */
#ifdef KVQ_BOUNDS_CHECK
#define KVQ_WORTH_A_THREAD 1.0 /* a checked build is for tests: let small problems use threads too */
#define KVQ_WORTH_WAKING 1.0
#else
#define KVQ_WORTH_A_THREAD 2.5e5
#define KVQ_WORTH_WAKING 4e6
#endif

/* Run all tasks, on as many threads as the work is worth (multiply_adds says how much that is) but
 * no more than num_threads. Returns 0, or -1 when scratch memory could not be had. */
int kvq_run(const kvq_pass *, const void *problem, double multiply_adds, int num_threads);

/* How many threads the process lets a call use, 0 for no limit: for threadpoolctl, which finds the two by name in
 * the loaded library. Whoever chooses num_threads asks here first. */
#define KVQ_EXPORTED __attribute__((visibility("default")))
KVQ_EXPORTED int kvq_get_thread_limit(void);
KVQ_EXPORTED void kvq_set_thread_limit(int);

#endif
