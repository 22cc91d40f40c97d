//! The pool on real threads. `loom/` checks every interleaving of a small one.

use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn every_task_runs_once() {
    let mut pool = Pool::<()>::new(3);
    for tasks in [0, 1, 2, 7, 100, 70_000] {
        let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, &|task, ()| {
            counts[task].fetch_add(1, Relaxed);
        });
        assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
    }
}

#[test]
fn every_idempotent_task_is_committed_once_with_its_own_result() {
    let mut pool = Pool::<usize>::new(3);
    for tasks in [0, 1, 2, 7, 100, 20_000] {
        let sums: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run_idempotent(tasks, Box::new(|task, scratch| *scratch = task + 1), &|task, scratch| {
            sums[task].fetch_add(*scratch, Relaxed);
        });
        assert!(sums.iter().enumerate().all(|(task, sum)| sum.load(Relaxed) == task + 1));
    }
}

#[test]
fn a_backup_task_replaces_a_straggler_and_the_stragglers_result_is_dropped() {
    let mut pool = Pool::<u64>::new(2);
    let late = Arc::new((AtomicBool::new(false), AtomicBool::new(false)));
    let there = late.clone();
    let caller = std::thread::current().id();
    // The other thread's first task sleeps until the operation is over, then computes something else.
    let compute: Compute<u64> = Box::new(move |_, scratch| {
        *scratch = 7;
        if std::thread::current().id() != caller && !there.0.swap(true, SeqCst) {
            while !there.1.load(SeqCst) {
                std::thread::yield_now();
            }
            *scratch = 666;
        }
    });
    let sum = AtomicU64::new(0);
    // The caller leaves the other thread time to take a task.
    let commit = |_: usize, scratch: &u64| {
        sum.fetch_add(*scratch, Relaxed);
        while !late.0.load(SeqCst) {
            std::thread::yield_now();
        }
    };
    pool.run_idempotent(10, compute, &commit);
    late.1.store(true, SeqCst);
    drop(pool);
    assert_eq!(sum.into_inner(), 70);
}

#[test]
fn a_panic_in_a_task_reaches_the_caller_and_the_pool_stays_usable() {
    let mut pool = Pool::<()>::new(2);
    let once = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|task, ()| assert_ne!(task, 5, "on purpose"))));
    let pure =
        catch_unwind(AssertUnwindSafe(|| pool.run_idempotent(8, Box::new(|task, ()| assert_ne!(task, 5, "on purpose")), &|_, ()| {})));
    assert!(once.is_err() && pure.is_err());
    let sum = AtomicUsize::new(0);
    pool.run(8, &|task, ()| {
        sum.fetch_add(task, Relaxed);
    });
    assert_eq!(sum.into_inner(), 28);
}
