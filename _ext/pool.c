/* pool.c - helpers are made when a call first wants them, and wait for the next.
 *
 * A helper without work looks for some for 50 microseconds, so that small calls that follow one another need not
 * wait for the system to wake it. Then it sleeps, and its processor is free for others, such as the threads of BLAS.
 * There are never more helpers than one call wanted; what several calls at once want, they share.
 *
 * After fork a child has none of its parent's helpers. It begins with an empty pool, and makes its own. */
#include "pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

enum { AWAKE_NS = 50000, SOON_NS = 50000 };

typedef struct {
    pthread_mutex_t lock;  /* guards what is not atomic */
    pthread_cond_t called; /* sleepers wait for it */
    kvq_offer *first;      /* offers with seats, oldest first */
    atomic_int seats;      /* of all of them, for those who look */
    atomic_int awake;      /* helpers that look */
    int helpers, sleepers;
    unsigned calls;          /* to sleepers, so far */
    atomic_llong last_small; /* when the last small job ended */
} kvq_pool;

#define NOBODY {.lock = PTHREAD_MUTEX_INITIALIZER, .called = PTHREAD_COND_INITIALIZER}

static kvq_pool own = NOBODY;
static kvq_pool *pool = &own;

static long long now(void) /* nanoseconds */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* The lock is held for some ten instructions: to go to sleep over it would take a hundred times as long. */
static void lock(void)
{
    for (int n = 0; n < 200; n++, PAUSE())
        if (pthread_mutex_trylock(&pool->lock) == 0) return;
    pthread_mutex_lock(&pool->lock);
}

static void unlock(void) { pthread_mutex_unlock(&pool->lock); }

/* ---- helpers --------------------------------------------------------------------------------- */
static kvq_offer *take_a_seat(void)
{
    lock();
    kvq_offer *offer = pool->first;
    if (offer) {
        atomic_fetch_add(&offer->holders, 1);
        atomic_fetch_sub(&pool->seats, 1);
        if (--offer->seats == 0) pool->first = offer->next;
    }
    unlock();
    return offer;
}

static kvq_offer *look_for_an_offer(void)
{
    kvq_offer *offer = NULL;
    atomic_fetch_add(&pool->awake, 1);
    const long long until = now() + AWAKE_NS;
    do {
        PAUSE();
        if (atomic_load_explicit(&pool->seats, memory_order_relaxed)) offer = take_a_seat();
    } while (!offer && now() < until);
    atomic_fetch_sub(&pool->awake, 1);
    return offer;
}

static void sleep_until_called(void)
{
    lock();
    const unsigned calls = pool->calls;
    pool->sleepers++;
    while (!pool->first && pool->calls == calls) pthread_cond_wait(&pool->called, &pool->lock);
    pool->sleepers--;
    unlock();
}

static void *helper(void *unused)
{
    for (;;) {
        kvq_offer *offer = look_for_an_offer();
        if (offer) offer->help(offer);
        else sleep_until_called();
    }
    return unused;
}

/* With the lock held. A system that makes no more threads is no error: the caller does the work. */
static void make_helpers(int wanted)
{
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_t id;
    while (pool->helpers < wanted && pthread_create(&id, &detached, helper, NULL) == 0) pool->helpers++;
    pthread_attr_destroy(&detached);
}

/* With the lock held. */
static void call_sleepers(int wanted)
{
    pool->calls++;
    for (int n = wanted < pool->sleepers ? wanted : pool->sleepers; n > 0; n--) pthread_cond_signal(&pool->called);
}

/* ---- who wants help -------------------------------------------------------------------------- */
void kvq_offer_seats(kvq_offer *offer, int seats, int wakes)
{
    lock();
    kvq_offer **end = &pool->first;
    while (*end) end = &(*end)->next;
    *end = offer;
    offer->next = NULL;
    offer->seats = seats;
    atomic_fetch_add(&pool->seats, seats);
    if (wakes) {
        make_helpers(seats);
        call_sleepers(seats);
    }
    unlock();
}

void kvq_withdraw(kvq_offer *offer)
{
    lock();
    if (offer->seats > 0) {
        kvq_offer **at = &pool->first;
        while (*at != offer) at = &(*at)->next;
        *at = offer->next;
        atomic_fetch_sub(&pool->seats, offer->seats);
        offer->seats = 0;
    }
    unlock();
}

int kvq_awake(int wanted)
{
    const int awake = atomic_load_explicit(&pool->awake, memory_order_relaxed);
    if (awake >= wanted) return wanted;
    if (now() - atomic_load_explicit(&pool->last_small, memory_order_relaxed) < SOON_NS) {
        lock();
        make_helpers(wanted);
        call_sleepers(wanted - awake);
        unlock();
    }
    return awake;
}

void kvq_small_job_ends(void) { atomic_store_explicit(&pool->last_small, now(), memory_order_relaxed); }

/* ---- one pool for the process ---------------------------------------------------------------- */
/* Nobody holds the lock while the process forks, so that what the child throws away is whole. */
static void before_fork(void) { pthread_mutex_lock(&own.lock); }
static void in_the_parent(void) { pthread_mutex_unlock(&own.lock); }
static void in_the_child(void) { own = (kvq_pool)NOBODY; }

void *kvq_share_pool(void)
{
    pthread_atfork(before_fork, in_the_parent, in_the_child);
    return &own;
}

void kvq_use_pool(void *shared) { pool = shared; }
