//! A fixed thread pool that runs the tasks of one operation at a time, with work stealing and backup tasks.
//!
//! Each thread claims tasks from the front of its own range, then steals halves from the back of the others'. Which
//! thread runs a task never changes its result. Between operations threads spin for a moment, because the next one
//! usually comes within microseconds, and then park: an idle model uses no processor time.
//!
//! On a busy machine the scheduler often preempts a thread in the middle of a task, for milliseconds, which is as long
//! as a whole token takes. Tasks are therefore idempotent where that is cheap: they read what the operation owns and
//! write to their thread's scratch. When a task takes too long, the caller runs it again as a backup task, and the first
//! of the two to finish commits its result. A straggler is a thread that is late with a task; it may still run it after a
//! backup has finished, and even after the operation has returned. It holds a reference to the operation, which owns all
//! that `compute` reads. Its result is dropped.
//!
//! `loom/` model-checks this module: it must use `sync`, not std, for whatever threads share.

mod operation;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;

use operation::{Operation, TaskState, Work};
use std::time::Duration;
use sync::*;

/// How long a thread spins for the next operation before it parks: longer than sampling a token takes.
const SPIN: Duration = Duration::from_micros(100);

/// Runs the task of this index, with the thread's scratch.
pub(super) type RunTask<'a, T> = dyn Fn(usize, &mut T) + Sync + 'a;
/// As `RunTask`, but owns what it reads, and leaves the task's result in the scratch.
pub(super) type Compute<T> = Box<dyn Fn(usize, &mut T) + Send + Sync>;
/// Copies a task's result from the scratch of the thread that computed it.
pub(super) type Commit<'a, T> = dyn Fn(usize, &T) + Sync + 'a;

/// `T` is the scratch memory of a thread: a task writes its result there before it is committed.
pub(super) struct Pool<T> {
    state: Arc<State<T>>,
    threads: Vec<thread::JoinHandle<()>>,
    scratch: T,
}

/// What the caller and the pool's threads share.
struct State<T> {
    operation: Mutex<Option<Arc<Operation<T>>>>,
    /// The number of operations published so far: threads poll it.
    epoch: AtomicU64,
    /// For each thread whether it is parked or about to park.
    parked: Vec<AtomicBool>,
    quit: AtomicBool,
}

impl<T: Default + 'static> Pool<T> {
    /// The calling thread counts as one of `threads`.
    pub(super) fn new(threads: usize) -> Self {
        let state = Arc::new(State {
            operation: Mutex::new(None),
            epoch: AtomicU64::new(0),
            parked: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            quit: AtomicBool::new(false),
        });
        let spawn = |thread| {
            let state = state.clone();
            let builder = thread::Builder::new().name(format!("compute/{thread}"));
            builder.spawn(move || state.serve(thread)).expect("the system can start a thread")
        };
        Self { threads: (1..threads).map(spawn).collect(), state, scratch: T::default() }
    }

    pub(super) fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `work` once for each task and returns when all are done. A panic in a task is a panic here.
    pub(super) fn run(&mut self, tasks: usize, work: &RunTask<'_, T>) {
        if tasks <= 1 || self.threads.is_empty() {
            (0..tasks).for_each(|task| work(task, &mut self.scratch));
            return;
        }
        // SAFETY: only the lifetime changes. `work` is called for claimed tasks only, and this call returns after the
        // last of them is done (see `Operation::run_task`).
        let work = unsafe { std::mem::transmute::<*const RunTask<'_, T>, *const RunTask<'static, T>>(work) };
        self.execute(Operation::new(Work::Exclusive(work), tasks, self.threads()));
    }

    /// Runs `compute` at least once for each task, and then `commit` once, with the scratch of the thread that computed the task
    /// first. Returns when all tasks are committed. A panic in a task is a panic here.
    pub(super) fn run_idempotent(&mut self, tasks: usize, compute: Compute<T>, commit: &Commit<'_, T>) {
        if tasks <= 1 || self.threads.is_empty() {
            for task in 0..tasks {
                compute(task, &mut self.scratch);
                commit(task, &self.scratch);
            }
            return;
        }
        // SAFETY: only the lifetime changes. `commit` is called once for each task, and this call returns after the last
        // of these calls (see `Operation::run_task`).
        let commit = unsafe { std::mem::transmute::<*const Commit<'_, T>, *const Commit<'static, T>>(commit) };
        let states = (0..tasks).map(|_| TaskState::default()).collect();
        self.execute(Operation::new(Work::Idempotent { compute, commit, states }, tasks, self.threads()));
    }

    /// Publishes an operation, takes part in it and waits for it. Does not unwind before every task is done.
    fn execute(&mut self, operation: Operation<T>) {
        let (state, operation) = (&*self.state, Arc::new(operation));
        state.set(Some(operation.clone()));
        state.epoch.fetch_add(1, Release);
        // Together with the fence in `serve`: either the thread sees the new epoch, or this one sees it parked.
        fence(SeqCst);
        for (parked, handle) in state.parked[1..].iter().zip(&self.threads) {
            if parked.load(Relaxed) {
                handle.thread().unpark();
            }
        }
        operation.run_tasks(0, &mut self.scratch);
        operation.wait(&mut self.scratch);
        state.set(None);
        if operation.has_panicked() {
            panic!("a task of the thread pool panicked; its message is in the log");
        }
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        self.state.quit.store(true, Release);
        for handle in self.threads.drain(..) {
            handle.thread().unpark();
            // `run` has already reported a panic of this thread.
            let _ = handle.join();
        }
    }
}

impl<T> State<T> {
    fn set(&self, operation: Option<Arc<Operation<T>>>) {
        *self.operation.lock().expect("no thread panics with this lock") = operation;
    }

    fn get(&self) -> Option<Arc<Operation<T>>> {
        self.operation.lock().expect("no thread panics with this lock").clone()
    }
}

impl<T: Default> State<T> {
    /// The loop of one of the pool's threads.
    fn serve(&self, thread: usize) {
        let mut scratch = T::default();
        let mut seen = 0;
        let mut since = Instant::now();
        while !self.quit.load(Acquire) {
            let epoch = self.epoch.load(Acquire);
            if epoch != seen {
                if let Some(operation) = self.get() {
                    operation.run_tasks(thread, &mut scratch);
                }
                seen = epoch;
                since = Instant::now();
            } else if since.elapsed() < SPIN {
                (0..32).for_each(|_| spin_loop());
            } else {
                self.parked[thread].store(true, Relaxed);
                fence(SeqCst);
                if self.epoch.load(Relaxed) == seen && !self.quit.load(Relaxed) {
                    thread::park();
                }
                self.parked[thread].store(false, Relaxed);
            }
        }
    }
}
