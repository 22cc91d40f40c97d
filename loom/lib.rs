//! The thread pool under loom, which runs every interleaving of a few threads, and every order in which the memory
//! model lets them see each other's writes. `UnsafeCell`s stand for the memory that tasks read and write: loom fails on
//! two accesses, one of them a write, that nothing orders.

#![cfg(all(loom, test))]

#[path = "../src/models/backend/cpu/pool/mod.rs"]
mod pool;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::sync::Arc;
use pool::Pool;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Checks all interleavings with at most so many preemptions.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Memory that the caller of an operation lends to its tasks.
struct Output(Vec<UnsafeCell<usize>>);

// SAFETY: loom checks that accesses don't race, which is what these tests are for.
unsafe impl Sync for Output {}

impl Output {
    fn new(tasks: usize) -> Self {
        Self((0..tasks).map(|_| UnsafeCell::new(0)).collect())
    }

    fn add(&self, task: usize, x: usize) {
        // SAFETY: as above.
        self.0[task].with_mut(|cell| unsafe { *cell += x });
    }

    /// Writes, as the caller may once the operation has returned: no straggler may still access it.
    fn take(&self) -> Vec<usize> {
        // SAFETY: as above.
        self.0.iter().map(|cell| cell.with_mut(|cell| unsafe { std::mem::take(&mut *cell) })).collect()
    }
}

/// Memory that an operation owns and stragglers may read.
struct Input(UnsafeCell<usize>);

// SAFETY: as `Output`.
unsafe impl Send for Input {}
// SAFETY: as `Output`.
unsafe impl Sync for Input {}

impl Input {
    fn read(&self) -> usize {
        // SAFETY: as `Output`.
        self.0.with(|cell| unsafe { *cell })
    }
}

#[test]
fn an_exclusive_task_runs_once_and_before_the_caller_goes_on() {
    for (threads, tasks, preemptions) in [(2, 2, 5), (2, 4, 4), (3, 3, 2)] {
        check(preemptions, move || {
            let mut pool = Pool::<()>::new(threads);
            let output = Output::new(tasks);
            pool.run(tasks, &|task, ()| output.add(task, task + 1));
            assert_eq!(output.take(), (1..=tasks).collect::<Vec<_>>());
        });
    }
}

#[test]
fn an_idempotent_task_is_committed_once_with_the_scratch_of_the_thread_that_computed_it() {
    for (threads, tasks, preemptions) in [(2, 2, 3), (2, 3, 3), (3, 3, 2)] {
        check(preemptions, move || {
            let mut pool = Pool::<usize>::new(threads);
            let output = Output::new(tasks);
            pool.run_idempotent(tasks, Box::new(|task, scratch| *scratch = task + 1), &|task, scratch| output.add(task, *scratch));
            assert_eq!(output.take(), (1..=tasks).collect::<Vec<_>>());
        });
    }
}

#[test]
fn a_straggler_reads_only_what_its_operation_owns() {
    check(5, || {
        let mut pool = Pool::<usize>::new(2);
        let mut input = Arc::new(Input(UnsafeCell::new(7)));
        let read = input.clone();
        let output = Output::new(2);
        pool.run_idempotent(2, Box::new(move |_, scratch| *scratch = read.read()), &|task, scratch| output.add(task, *scratch));
        assert_eq!(output.take(), [7, 7]);
        // As a tensor is reused: only where no straggler holds it.
        if let Some(input) = Arc::get_mut(&mut input) {
            // SAFETY: as `Output`.
            input.0.with_mut(|cell| unsafe { *cell = 8 });
        }
    });
}

#[test]
fn operations_that_follow_each_other_do_not_mix() {
    check(4, || {
        let mut pool = Pool::<usize>::new(2);
        let output = Output::new(2);
        pool.run_idempotent(2, Box::new(|_, scratch| *scratch = 1), &|task, scratch| output.add(task, *scratch));
        assert_eq!(output.take(), [1, 1]);
        pool.run(2, &|task, _| output.add(task, 2));
        assert_eq!(output.take(), [2, 2]);
    });
}

#[test]
fn a_parked_thread_is_woken_for_a_new_operation() {
    check(5, || {
        let mut pool = Pool::<()>::new(2);
        // Each task waits for the other, so one thread alone would spin until loom gives up.
        let running = AtomicUsize::new(0);
        pool.run(2, &|_, ()| {
            running.fetch_add(1, Relaxed);
            while running.load(Relaxed) < 2 {
                loom::thread::yield_now();
            }
        });
    });
}

#[test]
fn a_panic_in_a_task_reaches_the_caller_after_the_others_are_done() {
    check(4, || {
        std::panic::set_hook(Box::new(|_| {}));
        let mut pool = Pool::<()>::new(2);
        let output = Output::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(2, &|task, ()| {
                output.add(task, 1);
                assert_ne!(task, 1, "on purpose");
            })
        }));
        assert!(result.is_err());
        assert_eq!(output.take(), [1, 1]);
    });
}
