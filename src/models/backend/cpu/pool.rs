//! A few threads that share the pieces of one operation.
//!
//! Each thread takes pieces from the front of its own share, then halves of what is left from the back of the
//! others'. Who computes a piece never shows in its result. Threads spin a moment between operations, because
//! the next one comes within microseconds, and park when none does: an idle model costs no processor time.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread waits for the next operation before it sleeps: longer than sampling and a scheduling turn take.
const SPIN: Duration = Duration::from_micros(100);

/// What an operation does for piece `.0` on thread `.1`.
type Work<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// One thread's share of the current operation: `epoch << 32 | first << 16 | end`. A share of an older epoch is
/// over, so a thread that slept can't take a piece of an operation it doesn't know.
#[repr(align(128))]
struct Share(AtomicU64);

struct Shared {
    /// The current operation's work. Read only by who has claimed a piece of the current epoch, whose operation
    /// can't end before that piece is done.
    work: UnsafeCell<Option<Work<'static>>>,
    epoch: AtomicU64,
    shares: Vec<Share>,
    done: AtomicUsize,
    panicked: AtomicBool,
    parked: Vec<AtomicBool>,
    quit: AtomicBool,
}

// SAFETY: `work` is written only between operations, when no piece is claimed (see the field).
unsafe impl Sync for Shared {}

pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    epoch: u64,
}

impl Pool {
    /// The calling thread is one of `threads`.
    pub(super) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            work: UnsafeCell::new(None),
            epoch: AtomicU64::new(0),
            shares: (0..threads).map(|_| Share(AtomicU64::new(0))).collect(),
            done: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            parked: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            quit: AtomicBool::new(false),
        });
        let spawn = |thread| {
            let shared = shared.clone();
            let builder = std::thread::Builder::new().name(format!("compute/{thread}"));
            builder.spawn(move || shared.serve(thread)).expect("the system gives a thread")
        };
        Self { threads: (1..threads).map(spawn).collect(), shared, epoch: 0 }
    }

    pub(super) fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `work` for every piece and returns when all are done. A panic in a piece is a panic here.
    pub(super) fn run(&mut self, pieces: usize, work: Work<'_>) {
        if pieces <= 1 || self.threads.is_empty() {
            (0..pieces).for_each(|piece| work(piece, 0));
            return;
        }
        // A share counts pieces in 16 bits; more than that are run in groups.
        let size = pieces.div_ceil(usize::from(u16::MAX));
        let groups = pieces.div_ceil(size);
        if size > 1 {
            return self.run(groups, &|group, thread| (group * size..pieces.min((group + 1) * size)).for_each(|piece| work(piece, thread)));
        }
        let shared = &*self.shared;
        self.epoch = (self.epoch + 1) & u64::from(u32::MAX);
        // SAFETY: all pieces of the last operation are done, so nobody reads `work` (see the field); the lifetime
        // is made longer only until this function returns, which waits for every piece.
        unsafe { *shared.work.get() = Some(std::mem::transmute::<Work<'_>, Work<'static>>(work)) };
        shared.done.store(0, Relaxed);
        let n = self.threads();
        for (thread, share) in shared.shares.iter().enumerate() {
            let (first, end) = ((pieces * thread / n) as u64, (pieces * (thread + 1) / n) as u64);
            share.0.store(self.epoch << 32 | first << 16 | end, Release);
        }
        shared.epoch.store(self.epoch, SeqCst);
        for (thread, handle) in self.threads.iter().enumerate() {
            if shared.parked[thread + 1].load(SeqCst) {
                handle.thread().unpark();
            }
        }
        shared.work_through(self.epoch, 0);
        while shared.done.load(Acquire) < pieces {
            std::hint::spin_loop();
        }
        if shared.panicked.swap(false, Relaxed) {
            panic!("a piece of a step panicked; the log has its message");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.quit.store(true, SeqCst);
        for handle in self.threads.drain(..) {
            handle.thread().unpark();
            // A panic of this thread was already reported by `run`.
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// Takes the next piece of one's own share, or the back half of another's: as one run, worked forwards,
    /// because pieces taken one by one from the back would walk memory backwards.
    fn claim(&self, epoch: u64, whose: usize, own: bool) -> Option<std::ops::Range<usize>> {
        let share = &self.shares[whose].0;
        let mut current = share.load(Acquire);
        loop {
            let (first, end) = (current >> 16 & 0xffff, current & 0xffff);
            if current >> 32 != epoch || first >= end {
                return None;
            }
            let taken = if own { 1 } else { (end - first).div_ceil(2) };
            let (new, range) =
                if own { ((first + 1) << 16 | end, first..first + 1) } else { (first << 16 | (end - taken), end - taken..end) };
            match share.compare_exchange_weak(current, epoch << 32 | new, AcqRel, Acquire) {
                Ok(_) => return Some(range.start as usize..range.end as usize),
                Err(now) => current = now,
            }
        }
    }

    fn work_through(&self, epoch: u64, thread: usize) {
        for d in 0..self.shares.len() {
            while let Some(range) = self.claim(epoch, (thread + d) % self.shares.len(), d == 0) {
                // SAFETY: a piece of this epoch is claimed and not done, so the operation is in hand.
                let work = unsafe { (*self.work.get()).expect("set before the shares") };
                let pieces = range.len();
                if catch_unwind(AssertUnwindSafe(|| range.for_each(|piece| work(piece, thread)))).is_err() {
                    self.panicked.store(true, Relaxed);
                }
                self.done.fetch_add(pieces, AcqRel);
            }
        }
    }

    fn serve(&self, thread: usize) {
        let mut seen = 0;
        let mut since = Instant::now();
        while !self.quit.load(Relaxed) {
            let epoch = self.epoch.load(Acquire);
            if epoch != seen {
                self.work_through(epoch, thread);
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
        let mut pool = Pool::new(3);
        for pieces in [0, 1, 2, 7, 100, 70_000] {
            let counts: Vec<_> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
            pool.run(pieces, &|piece, _| {
                counts[piece].fetch_add(1, Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_in_a_piece_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(2);
        let run = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|piece, _| assert_ne!(piece, 5, "on purpose"))));
        assert!(run.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(8, &|piece, _| {
            sum.fetch_add(piece, Relaxed);
        });
        assert_eq!(sum.into_inner(), 28);
    }
}
