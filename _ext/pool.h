/* pool.h - helpers: threads that wait for work, few, and shared by all calls of the process. Plain C: compiled once. */
#ifndef KVQ_POOL_H
#define KVQ_POOL_H

#include <stdatomic.h>

/* What the pool knows of a job. A helper who takes a seat becomes a holder, and calls help, which ends with leaving. */
typedef struct kvq_offer {
    void (*help)(struct kvq_offer *);
    atomic_int holders; /* threads that may still touch the job */
    int seats;          /* for so many more helpers; this and next are the pool's */
    struct kvq_offer *next;
} kvq_offer;

/* Offer seats in a job, to whoever looks for work; with wakes, as many helpers are made and woken as are wanted. */
void kvq_offer_seats(kvq_offer *, int seats, int wakes);

/* From here on nobody joins any more. */
void kvq_withdraw(kvq_offer *);

/* How many helpers, up to `wanted`, look for work at this moment: those a small job may offer seats to. When it
 * follows close upon the end of another small job, more will be awake for the next. */
int kvq_awake(int wanted);
void kvq_small_job_ends(void);

/* Every extension module holds a copy of this code, with a pool. One of them shares its own, and watches over it when
 * the process forks; the others use that one. */
void *kvq_share_pool(void);
void kvq_use_pool(void *);

#endif
