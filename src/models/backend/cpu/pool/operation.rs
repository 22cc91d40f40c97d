//! One operation of the pool: which tasks are unclaimed, running and done.

use super::sync::*;
use super::{Commit, Compute, RunTask};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// How long the lender waits in an operation before it runs unfinished idempotent tasks itself, as backup tasks: a few times the
/// usual duration of a task.
const STRAGGLER_AFTER: Duration = Duration::from_micros(50);
/// Polls of a task's state between two readings of the clock.
const POLLS: u32 = if cfg!(loom) { 1 } else { 64 };

pub(super) enum Work<T> {
    /// Each task runs once. The closure is borrowed from the caller of `run`, the lender.
    Exclusive(*const RunTask<'static, T>),
    /// `compute` leaves a task's result in the scratch of its thread, and `commit` takes it from there. `compute` may run several
    /// times for one task, `commit` runs once. `commit` is borrowed from the caller of `run_idempotent`, the lender.
    Idempotent { compute: Compute<T>, commit: *const Commit<'static, T>, states: Vec<TaskState> },
}

/// The state of an idempotent task. Threads that write to one cache line wait for each other, so at most four states share a line
/// of 64 bytes.
#[derive(Default)]
#[repr(align(16))]
pub(super) struct TaskState(AtomicU8);

const PENDING: u8 = 0;
const COMMITTING: u8 = 1;
const DONE: u8 = 2;

/// One thread's unclaimed tasks: `first << 32 | end`.
#[repr(align(128))]
struct TaskRange(AtomicU64);

pub(super) struct Operation<T> {
    work: Work<T>,
    ranges: Vec<TaskRange>,
    tasks: usize,
    /// Exclusive tasks that are done.
    done: AtomicUsize,
    panicked: AtomicBool,
}

// SAFETY: `compute` is `Send + Sync`. The borrowed closures are `Sync`, so any thread may call them; they are called only
// while their lender waits (see `run_task`). A pointer that outlives its lender, in an operation that a straggler still
// holds, is never used. `T` is each thread's own and not stored here.
unsafe impl<T> Send for Operation<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Operation<T> {}

impl<T> Operation<T> {
    pub(super) fn new(work: Work<T>, tasks: usize, threads: usize) -> Self {
        // Both ends of a range share one word.
        assert!(u32::try_from(tasks).is_ok(), "{tasks} tasks are more than an operation may have");
        let bound = |thread: usize| (tasks as u64) * (thread as u64) / (threads as u64);
        let range = |thread| TaskRange(AtomicU64::new(bound(thread) << 32 | bound(thread + 1)));
        Self { work, ranges: (0..threads).map(range).collect(), tasks, done: AtomicUsize::new(0), panicked: AtomicBool::new(false) }
    }

    pub(super) fn has_panicked(&self) -> bool {
        self.panicked.load(Relaxed)
    }

    /// Claims and runs tasks until none is unclaimed: first those of the thread's own range, then those of the others.
    pub(super) fn run_tasks(&self, thread: usize, scratch: &mut T) {
        for distance in 0..self.ranges.len() {
            while let Some(range) = self.claim((thread + distance) % self.ranges.len(), distance == 0) {
                let count = range.len();
                range.for_each(|task| self.run_task(task, scratch));
                if let Work::Exclusive(_) = self.work {
                    // Release: the lender sees the tasks' writes.
                    self.done.fetch_add(count, AcqRel);
                }
            }
        }
    }

    /// Claims the first task of the thread's own range, or the back half of what is left of another thread's range. Both ways a
    /// thread runs tasks in ascending order, because consecutive tasks read consecutive memory.
    fn claim(&self, owner: usize, own: bool) -> Option<Range<usize>> {
        let range = &self.ranges[owner].0;
        let mut current = range.load(Acquire);
        loop {
            let (first, end) = (current >> 32, current & 0xffff_ffff);
            if first >= end {
                return None;
            }
            let (rest, claimed) = if own {
                ((first + 1, end), first..first + 1)
            } else {
                let middle = end - (end - first).div_ceil(2);
                ((first, middle), middle..end)
            };
            match range.compare_exchange_weak(current, rest.0 << 32 | rest.1, AcqRel, Acquire) {
                Ok(_) => return Some(claimed.start as usize..claimed.end as usize),
                Err(now) => current = now,
            }
        }
    }

    /// Runs a task that this thread has claimed, or a backup task. An idempotent task that is committing or done is skipped.
    fn run_task(&self, task: usize, scratch: &mut T) {
        match &self.work {
            Work::Exclusive(work) => {
                // SAFETY: this thread claimed the task and has not counted it as done, so the lender still waits.
                self.record(catch_unwind(AssertUnwindSafe(|| unsafe { (**work)(task, scratch) })));
            }
            Work::Idempotent { compute, commit, states } => {
                let state = &states[task].0;
                if state.load(Relaxed) != PENDING {
                    return;
                }
                let result = catch_unwind(AssertUnwindSafe(|| compute(task, scratch)));
                if state.compare_exchange(PENDING, COMMITTING, AcqRel, Relaxed).is_err() {
                    discard(result);
                    return;
                }
                // SAFETY: only this thread changed the state to COMMITTING, and the lender waits for DONE.
                let commit = || unsafe { (**commit)(task, scratch) };
                self.record(result.and_then(|()| catch_unwind(AssertUnwindSafe(commit))));
                // Release: the lender sees the committed result and `panicked`.
                state.store(DONE, Release);
            }
        }
    }

    fn record(&self, result: std::thread::Result<()>) {
        if result.is_err() {
            self.panicked.store(true, Relaxed);
        }
        discard(result);
    }

    /// Called by the lender: returns when every task is done. Idempotent tasks of stragglers get backup tasks; for exclusive tasks
    /// it only waits.
    pub(super) fn wait(&self, scratch: &mut T) {
        let Work::Idempotent { states, .. } = &self.work else {
            while self.done.load(Acquire) < self.tasks {
                spin_loop();
            }
            return;
        };
        let mut waiting_since = None;
        for (task, TaskState(state)) in states.iter().enumerate() {
            let mut polls = 0u32;
            while state.load(Acquire) != DONE {
                polls += 1;
                if polls.is_multiple_of(POLLS) && waiting_since.get_or_insert_with(Instant::now).elapsed() > STRAGGLER_AFTER {
                    self.run_task(task, scratch);
                }
                // Not before the backup task: loom's `spin_loop` yields to the other threads, which would finish the task first.
                spin_loop();
            }
        }
    }
}

/// Leaks a panic's payload. Its destructor could panic too, and the lender must not unwind while other threads use the borrowed
/// closures.
fn discard(result: std::thread::Result<()>) {
    if let Err(payload) = result {
        std::mem::forget(payload);
    }
}
