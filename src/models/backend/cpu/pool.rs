//! A few threads that share the pieces of one operation.
//!
//! Each thread takes pieces from the front of its own share, then halves of what is left from the back of the
//! others'. Who computes a piece never shows in its result. Threads spin a moment between operations, because
//! the next one comes within microseconds, and park when none does: an idle model costs no processor time.
//!
//! Where others want the processors too, a thread is nearly always put aside with a piece in hand, for milliseconds,
//! which is a token's whole time. So pieces are made pure where that is cheap: they read what the operation owns and
//! write to their thread's scratch, and whoever waits for a late one computes it again. The first to finish copies its
//! result out. The late thread may still read when the operation is long over; it holds on to the operation and
//! so to all it reads, and its result is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::*};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread waits for the next operation before it sleeps: longer than sampling and a scheduling turn take.
const SPIN: Duration = Duration::from_micros(100);
/// How long a pure piece may be late: a few times what one takes.
const PATIENCE: Duration = Duration::from_micros(50);

/// What is done for piece `.0` with the thread's scratch.
type Piece<'a, T> = dyn Fn(usize, &mut T) + Sync + 'a;
/// As `Piece`, owning what it reads.
pub(super) type Compute<T> = Box<dyn Fn(usize, &mut T) + Send + Sync>;
type Commit<'a, T> = dyn Fn(usize, &T) + Sync + 'a;

enum Work<T> {
    /// Every piece once; called only by who claimed it, while the caller of `run` waits.
    Once(*const Piece<'static, T>),
    /// `commit` is called only by who won the piece, while the caller of `run_idempotent` waits.
    Pure { compute: Compute<T>, commit: *const Commit<'static, T>, states: Vec<State> },
}

/// A pure piece's, with some distance, because two threads that write to one cache line wait for each other.
#[derive(Default)]
#[repr(align(16))]
struct State(AtomicU8);

const OPEN: u8 = 0;
const COMMITTING: u8 = 1;
const DONE: u8 = 2;

/// One thread's share of the pieces, not yet claimed: `first << 32 | end`.
#[repr(align(128))]
struct Share(AtomicU64);

struct Operation<T> {
    work: Work<T>,
    shares: Vec<Share>,
    pieces: usize,
    /// Pieces done of those that are done once.
    done: AtomicUsize,
    panicked: AtomicBool,
}

// SAFETY: the closures are `Sync`; the borrowed ones are called only while their lender waits (see `Work`).
unsafe impl<T> Send for Operation<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Operation<T> {}

struct Shared<T> {
    operation: Mutex<Option<Arc<Operation<T>>>>,
    /// Counts operations: a change is the sign that there is a new one.
    epoch: AtomicU64,
    parked: Vec<AtomicBool>,
    quit: AtomicBool,
}

/// `T`: every thread's scratch.
pub(super) struct Pool<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
    scratch: T,
}

impl<T: Default + 'static> Pool<T> {
    /// The calling thread is one of `threads`.
    pub(super) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            operation: Mutex::default(),
            epoch: AtomicU64::new(0),
            parked: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            quit: AtomicBool::new(false),
        });
        let spawn = |thread| {
            let shared = shared.clone();
            let builder = std::thread::Builder::new().name(format!("compute/{thread}"));
            builder.spawn(move || shared.serve(thread)).expect("the system gives a thread")
        };
        Self { threads: (1..threads).map(spawn).collect(), shared, scratch: T::default() }
    }

    pub(super) fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `work` for every piece and returns when all are done. A panic in a piece is a panic here.
    pub(super) fn run(&mut self, pieces: usize, work: &Piece<'_, T>) {
        if pieces <= 1 || self.threads.is_empty() {
            (0..pieces).for_each(|piece| work(piece, &mut self.scratch));
            return;
        }
        // SAFETY: only the lifetime changes; a claimed piece keeps this call waiting, and none is claimed after it.
        let work = unsafe { std::mem::transmute::<*const Piece<'_, T>, *const Piece<'static, T>>(work) };
        self.operate(Operation::new(Work::Once(work), pieces, self.threads()));
    }

    /// Runs `compute` for every piece, some of them more than once, and `commit` once for each, with the scratch of the
    /// thread that computed it. Returns when all are committed; a panic in a piece is a panic here.
    pub(super) fn run_idempotent(&mut self, pieces: usize, compute: Compute<T>, commit: &Commit<'_, T>) {
        if pieces <= 1 || self.threads.is_empty() {
            for piece in 0..pieces {
                compute(piece, &mut self.scratch);
                commit(piece, &self.scratch);
            }
            return;
        }
        // SAFETY: only the lifetime changes; every piece is committed before this call returns, and none twice.
        let commit = unsafe { std::mem::transmute::<*const Commit<'_, T>, *const Commit<'static, T>>(commit) };
        let states = (0..pieces).map(|_| State::default()).collect();
        self.operate(Operation::new(Work::Pure { compute, commit, states }, pieces, self.threads()));
    }

    fn operate(&mut self, operation: Operation<T>) {
        let (shared, operation) = (&*self.shared, Arc::new(operation));
        *shared.operation.lock().expect("nothing panics while it is held") = Some(operation.clone());
        shared.epoch.fetch_add(1, SeqCst);
        for (thread, handle) in self.threads.iter().enumerate() {
            if shared.parked[thread + 1].load(SeqCst) {
                handle.thread().unpark();
            }
        }
        operation.work_through(0, &mut self.scratch);
        operation.wait(&mut self.scratch);
        *shared.operation.lock().expect("as above") = None;
        if operation.panicked.load(Relaxed) {
            panic!("a piece of a step panicked; the log has its message");
        }
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        self.shared.quit.store(true, SeqCst);
        for handle in self.threads.drain(..) {
            handle.thread().unpark();
            // A panic of this thread was already reported by `run`.
            let _ = handle.join();
        }
    }
}

impl<T> Operation<T> {
    fn new(work: Work<T>, pieces: usize, threads: usize) -> Self {
        let cut = |thread: usize| (pieces * thread / threads) as u64;
        let shares = (0..threads).map(|thread| Share(AtomicU64::new(cut(thread) << 32 | cut(thread + 1)))).collect();
        Self { work, shares, pieces, done: AtomicUsize::new(0), panicked: AtomicBool::new(false) }
    }

    /// Takes the next piece of one's own share, or the back half of another's: as one run, worked forwards,
    /// because pieces taken one by one from the back would walk memory backwards.
    fn claim(&self, whose: usize, own: bool) -> Option<std::ops::Range<usize>> {
        let share = &self.shares[whose].0;
        let mut current = share.load(Acquire);
        loop {
            let (first, end) = (current >> 32, current & 0xffff_ffff);
            if first >= end {
                return None;
            }
            let taken = if own { 1 } else { (end - first).div_ceil(2) };
            let (new, range) =
                if own { ((first + 1) << 32 | end, first..first + 1) } else { (first << 32 | (end - taken), end - taken..end) };
            match share.compare_exchange_weak(current, new, AcqRel, Acquire) {
                Ok(_) => return Some(range.start as usize..range.end as usize),
                Err(now) => current = now,
            }
        }
    }

    fn work_through(&self, thread: usize, scratch: &mut T) {
        for d in 0..self.shares.len() {
            while let Some(range) = self.claim((thread + d) % self.shares.len(), d == 0) {
                let count = range.len();
                range.for_each(|piece| self.piece(piece, scratch));
                if let Work::Once(_) = self.work {
                    self.done.fetch_add(count, AcqRel);
                }
            }
        }
    }

    /// Computes a piece, unless it is a pure one that someone has finished.
    fn piece(&self, piece: usize, scratch: &mut T) {
        match &self.work {
            // SAFETY: this thread claimed the piece, so the lender waits for it.
            Work::Once(work) => self.note(catch_unwind(AssertUnwindSafe(|| unsafe { (**work)(piece, scratch) }))),
            Work::Pure { compute, commit, states } => {
                let state = &states[piece].0;
                if state.load(Relaxed) != OPEN {
                    return;
                }
                let result = catch_unwind(AssertUnwindSafe(|| compute(piece, scratch)));
                if state.compare_exchange(OPEN, COMMITTING, AcqRel, Relaxed).is_err() {
                    return;
                }
                // SAFETY: this thread won the piece, so the lender waits for it.
                let result = result.and_then(|()| catch_unwind(AssertUnwindSafe(|| unsafe { (**commit)(piece, scratch) })));
                // Before the lender may go on.
                self.note(result);
                state.store(DONE, Release);
            }
        }
    }

    fn note(&self, result: std::thread::Result<()>) {
        if result.is_err() {
            self.panicked.store(true, Relaxed);
        }
    }

    /// Returns when every piece is done; computes again what is late.
    fn wait(&self, scratch: &mut T) {
        let Work::Pure { states, .. } = &self.work else {
            while self.done.load(Acquire) < self.pieces {
                std::hint::spin_loop();
            }
            return;
        };
        let mut since = None;
        for (piece, State(state)) in states.iter().enumerate() {
            let mut spins = 0u32;
            while state.load(Acquire) != DONE {
                std::hint::spin_loop();
                spins += 1;
                if spins.is_multiple_of(64) && since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    self.piece(piece, scratch);
                }
            }
        }
    }
}

impl<T: Default> Shared<T> {
    fn serve(&self, thread: usize) {
        let mut scratch = T::default();
        let mut seen = 0;
        let mut since = Instant::now();
        while !self.quit.load(Relaxed) {
            let epoch = self.epoch.load(Acquire);
            if epoch != seen {
                let operation = self.operation.lock().expect("nothing panics while it is held").clone();
                if let Some(operation) = operation {
                    operation.work_through(thread, &mut scratch);
                }
                seen = epoch;
                since = Instant::now();
            } else if since.elapsed() < SPIN {
                for _ in 0..32 {
                    std::hint::spin_loop();
                }
            } else {
                self.parked[thread].store(true, SeqCst);
                if self.epoch.load(SeqCst) == seen && !self.quit.load(SeqCst) {
                    std::thread::park();
                }
                self.parked[thread].store(false, SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_once() {
        let mut pool = Pool::<()>::new(3);
        for pieces in [0, 1, 2, 7, 100, 70_000] {
            let counts: Vec<_> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
            pool.run(pieces, &|piece, ()| {
                counts[piece].fetch_add(1, Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
        }
    }

    #[test]
    fn every_pure_piece_is_committed_once_with_its_result() {
        let mut pool = Pool::<usize>::new(3);
        for pieces in [0, 1, 2, 7, 100, 20_000] {
            let sums: Vec<_> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
            pool.run_idempotent(pieces, Box::new(|piece, scratch| *scratch = piece + 1), &|piece, scratch| {
                sums[piece].fetch_add(*scratch, Relaxed);
            });
            assert!(sums.iter().enumerate().all(|(piece, sum)| sum.load(Relaxed) == piece + 1));
        }
    }

    #[test]
    fn a_late_piece_is_computed_by_who_waits_and_its_late_result_is_dropped() {
        let mut pool = Pool::<u64>::new(2);
        let late = Arc::new((AtomicBool::new(false), AtomicBool::new(false)));
        let there = late.clone();
        let caller = std::thread::current().id();
        // The other thread's first piece sleeps until the operation is over, then computes something else.
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
        // The caller leaves the other thread time to take a piece.
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
    fn a_panic_in_a_piece_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::<()>::new(2);
        let once = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|piece, ()| assert_ne!(piece, 5, "on purpose"))));
        let pure = catch_unwind(AssertUnwindSafe(|| {
            pool.run_idempotent(8, Box::new(|piece, ()| assert_ne!(piece, 5, "on purpose")), &|_, ()| {})
        }));
        assert!(once.is_err() && pure.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(8, &|piece, ()| {
            sum.fetch_add(piece, Relaxed);
        });
        assert_eq!(sum.into_inner(), 28);
    }
}
