/* threads.c - how the tasks of one pass are spread over threads.
 *
 * A call makes its tasks a job, offers seats in it to the helpers of the pool (pool.c), takes tasks like everyone
 * else, and waits until all are done. Great jobs wake helpers. Small ones, a few microseconds of work, are over before
 * a sleeper is there: they go to helpers that are awake, and where small jobs follow one another they see to it
 * that some are.
 *
 * The caller waits for the tasks, not for the helpers. On a busy machine a helper may first run when everything is
 * done; it then finds no task and leaves. So the job is shared memory, freed by whoever leaves it last, and a late
 * helper touches nothing else. */
#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "pool.h"

enum { MAX_THREADS = 256, CACHE_LINE = 64 };

typedef struct {
    kvq_offer offer; /* comes first: a helper knows the job by it */
    const kvq_pass *pass;
    const void *problem;
    ptrdiff_t tasks;
    int threads;
    atomic_ptrdiff_t taken, done; /* tasks */
    atomic_int workspaces_used;
    char *workspaces;
    size_t workspace_bytes;
    pthread_mutex_t lock;
    pthread_cond_t all_done;
} job;

static void leave(job *j)
{
    if (atomic_fetch_sub(&j->offer.holders, 1) > 1) return;
    pthread_cond_destroy(&j->all_done);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

/* Several at once while there are many, so that taking costs little, and at the end one by one, so that all
 * threads end together. Returns how many, from *start on; 0 if none is left. */
static ptrdiff_t take_some(job *j, ptrdiff_t *start)
{
    ptrdiff_t taken = atomic_load(&j->taken), n;
    do {
        if (taken == j->tasks) return 0;
        n = (j->tasks - taken) / (4 * j->threads) + 1;
    } while (!atomic_compare_exchange_weak(&j->taken, &taken, taken + n));
    *start = taken;
    return n;
}

/* Which thread takes which task does not matter: results are disjoint. */
static void take_tasks(job *j)
{
    char *workspace = NULL;
    ptrdiff_t start, n;
    while ((n = take_some(j, &start)) > 0) {
        if (!workspace)
            workspace = j->workspaces +
                        (size_t)atomic_fetch_add(&j->workspaces_used, 1) * j->workspace_bytes;
        for (ptrdiff_t task = start; task < start + n; task++) j->pass->run(j->problem, workspace, task);
        if (atomic_fetch_add(&j->done, n) + n == j->tasks) {
            pthread_mutex_lock(&j->lock);
            pthread_cond_signal(&j->all_done);
            pthread_mutex_unlock(&j->lock);
        }
    }
}

static void help(kvq_offer *offer)
{
    take_tasks((job *)offer);
    leave((job *)offer);
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

static int run_with_helpers(const kvq_pass *pass, const void *P, size_t workspace_bytes, int threads, int wakes)
{
    job *j = malloc(sizeof(job) + workspace_bytes * (size_t)threads + CACHE_LINE);
    if (!j) return -1;
    j->offer.help = help;
    atomic_init(&j->offer.holders, 1); /* the calling thread */
    j->pass = pass;
    j->problem = P;
    j->tasks = pass->tasks(P);
    j->threads = threads;
    j->workspaces = aligned((char *)(j + 1));
    j->workspace_bytes = workspace_bytes;
    atomic_init(&j->taken, 0);
    atomic_init(&j->done, 0);
    atomic_init(&j->workspaces_used, 0);
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->all_done, NULL);
    kvq_offer_seats(&j->offer, threads - 1, wakes);
    take_tasks(j);
    kvq_withdraw(&j->offer);
    wait_until_done(j);
    leave(j);
    return 0;
}

/* ---- how many threads ------------------------------------------------------------------------ */
static atomic_int thread_limit;

int kvq_get_thread_limit(void) { return atomic_load(&thread_limit); }

void kvq_set_thread_limit(int limit) { atomic_store(&thread_limit, limit > 0 ? limit : 0); }

static int least(ptrdiff_t a, double b) { return (double)a < b ? (int)a : (int)b; }

int kvq_run(const kvq_pass *pass, const void *P, double multiply_adds, int num_threads)
{
    const ptrdiff_t tasks = pass->tasks(P);
    const int most = least(num_threads < tasks ? num_threads : tasks, MAX_THREADS);
    const int worth_waking = least(most, multiply_adds / KVQ_WORTH_WAKING);
    const int worth_taking = least(most, multiply_adds / KVQ_WORTH_A_THREAD);
    const size_t bytes = pass->workspace_bytes(P) + CACHE_LINE; /* a line apart: no false sharing */
    const size_t each = (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;

    if (worth_taking < 2) return run_alone(pass, P, each);
    if (worth_waking > 1) return run_with_helpers(pass, P, each, worth_waking, 1);
    const int awake = kvq_awake(worth_taking - 1);
    const int failed = awake ? run_with_helpers(pass, P, each, awake + 1, 0) : run_alone(pass, P, each);
    kvq_small_job_ends();
    return failed;
}
