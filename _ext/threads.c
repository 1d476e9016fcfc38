/* threads.c - how the tasks of one pass are spread over threads.
 *
 * Threads are made for one call: nothing lives between calls, so no pool spins against BLAS and
 * nothing breaks after fork. Making one costs some 20 microseconds, so small problems run in the
 * calling thread.
 *
 * The caller waits for the tasks, not for the threads. On a busy machine a thread may first run
 * when everything is done; it then finds no task and leaves. So the job is shared memory, freed by
 * whoever leaves it last, and a late thread touches nothing else. */
#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

enum { MAX_THREADS = 256, CACHE_LINE = 64 };

typedef struct {
    const kvq_pass *pass;
    const void *problem;
    ptrdiff_t tasks, chunk;
    atomic_ptrdiff_t taken, done; /* tasks */
    atomic_int holders;           /* threads that still hold this job */
    atomic_int workspaces_used;
    char *workspaces;
    size_t workspace_bytes;
    pthread_mutex_t lock;
    pthread_cond_t all_done;
} job;

static void leave(job *j)
{
    if (atomic_fetch_sub(&j->holders, 1) > 1) return;
    pthread_cond_destroy(&j->all_done);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

/* Tasks are taken in chunks. Which thread takes which does not matter: results are disjoint. */
static void take_tasks(job *j)
{
    char *workspace = NULL;
    for (;;) {
        const ptrdiff_t start = atomic_fetch_add(&j->taken, j->chunk);
        if (start >= j->tasks) return;
        const ptrdiff_t end = start + j->chunk < j->tasks ? start + j->chunk : j->tasks;
        if (!workspace)
            workspace = j->workspaces +
                        (size_t)atomic_fetch_add(&j->workspaces_used, 1) * j->workspace_bytes;
        for (ptrdiff_t task = start; task < end; task++) j->pass->run(j->problem, workspace, task);
        if (atomic_fetch_add(&j->done, end - start) + end - start == j->tasks) {
            pthread_mutex_lock(&j->lock);
            pthread_cond_signal(&j->all_done);
            pthread_mutex_unlock(&j->lock);
        }
    }
}

static void *thread_main(void *argument)
{
    take_tasks((job *)argument);
    leave((job *)argument);
    return NULL;
}

static void wait_until_done(job *j)
{
    for (int spin = 0; spin < 20000; spin++) /* some 10 microseconds: threads finish together */
        if (atomic_load(&j->done) == j->tasks) return;
    pthread_mutex_lock(&j->lock);
    while (atomic_load(&j->done) < j->tasks) pthread_cond_wait(&j->all_done, &j->lock);
    pthread_mutex_unlock(&j->lock);
}

static char *aligned(char *p) { return p + (CACHE_LINE - (uintptr_t)p % CACHE_LINE) % CACHE_LINE; }

static int run_alone(const kvq_pass *pass, const void *P, size_t workspace_bytes)
{
    const ptrdiff_t tasks = pass->tasks(P);
    char *memory = malloc(workspace_bytes + CACHE_LINE);
    if (!memory) return -1;
    for (ptrdiff_t task = 0; task < tasks; task++) pass->run(P, aligned(memory), task);
    free(memory);
    return 0;
}

static atomic_int thread_limit;

int kvq_get_thread_limit(void) { return atomic_load(&thread_limit); }

void kvq_set_thread_limit(int limit) { atomic_store(&thread_limit, limit > 0 ? limit : 0); }

int kvq_run(const kvq_pass *pass, const void *P, double multiply_adds, int num_threads)
{
    const ptrdiff_t tasks = pass->tasks(P);
    ptrdiff_t threads = num_threads < MAX_THREADS ? num_threads : MAX_THREADS;
    if ((double)threads > multiply_adds / KVQ_WORTH_A_THREAD)
        threads = (ptrdiff_t)(multiply_adds / KVQ_WORTH_A_THREAD);
    if (threads > tasks) threads = tasks;

    const size_t bytes = pass->workspace_bytes(P) + CACHE_LINE; /* a line apart: no false sharing */
    const size_t each = (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    if (threads < 2) return run_alone(pass, P, each);

    job *j = malloc(sizeof(job) + each * (size_t)threads + CACHE_LINE);
    if (!j) return -1;
    j->pass = pass;
    j->problem = P;
    j->tasks = tasks;
    j->chunk = tasks / (8 * threads) + 1; /* few enough to be cheap, enough to even out */
    j->workspaces = aligned((char *)(j + 1));
    j->workspace_bytes = each;
    atomic_init(&j->taken, 0);
    atomic_init(&j->done, 0);
    atomic_init(&j->workspaces_used, 0);
    atomic_init(&j->holders, 1); /* the calling thread */
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->all_done, NULL);

    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (ptrdiff_t t = 1; t < threads; t++) {
        pthread_t id;
        atomic_fetch_add(&j->holders, 1);
        if (pthread_create(&id, &detached, thread_main, j) != 0) { /* do without */
            atomic_fetch_sub(&j->holders, 1);
            break;
        }
    }
    pthread_attr_destroy(&detached);
    take_tasks(j);
    wait_until_done(j);
    leave(j);
    return 0;
}
