//! Threads: the only file that knows Rayon, or that a host may bring a pool.
//!
//! Work is a number of tasks. The calling thread takes tasks like the others
//! and is the one that asks the caller's [`Ctl`] whether to go on, so that
//! Ctrl-C reaches a long product. Which thread runs which task never changes a
//! result: tasks write disjoint outputs.
//!
//! There are two pools. The private Rayon pool is made on first use, and again
//! in a forked child ([`prepare_for_forks`]). Between torch's
//! operators it would fight torch's OpenMP workers, which spin for a while
//! after each operator; so [`adopt_openmp`] lets the torch adapter hand over
//! the OpenMP library that torch has loaded, and parallel loops then run on
//! the same workers.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError};

use crate::{Error, Result};

/// How a call runs: on how many threads, and whether it should go on.
pub struct Ctl<'a> {
    threads: usize,
    /// Run on the adopted OpenMP pool where there is one.
    openmp: bool,
    /// Asked now and then by the calling thread; `true` stops the call.
    stop: &'a (dyn Fn() -> bool + 'a),
}

impl Ctl<'static> {
    /// Runs to its end on at most `threads` threads (0 counts as 1).
    pub const fn new(threads: usize) -> Self {
        Ctl { threads: if threads == 0 { 1 } else { threads }, openmp: false, stop: &|| false }
    }
}

impl<'a> Ctl<'a> {
    /// As [`Ctl::new`], with a question that the calling thread asks between
    /// tasks; `true` ends the call with [`Error::Interrupted`]. Set `openmp`
    /// to run on the pool given to [`adopt_openmp`].
    pub fn with(threads: usize, openmp: bool, stop: &'a (dyn Fn() -> bool + 'a)) -> Self {
        Ctl { threads: threads.max(1), openmp, stop }
    }

    /// Threads that this call may use.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Asks, on the calling thread alone, whether to go on: for long loops that are no tasks.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        if (self.stop)() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Runs `body(slot, task)` for every task in `0..tasks`. `slot` is less
    /// than `self.threads()` and belongs to one thread at a time: scratch
    /// memory is indexed by it. Tasks are handed out in ascending order.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn for_each(&self, tasks: usize, body: &(dyn Fn(usize, usize) + Sync)) -> Result<()> {
        let workers = self.threads.min(tasks);
        if workers <= 1 {
            for task in 0..tasks {
                body(0, task);
                if (self.stop)() {
                    return Err(Error::Interrupted);
                }
            }
            return Ok(());
        }
        let run =
            Run { body, tasks, next: AtomicUsize::new(0), slots: AtomicUsize::new(1), ended: AtomicBool::new(false) };
        if let Some(omp) = self.openmp.then(openmp).flatten() {
            omp.run(&run, workers, self.stop);
        } else if let Some(pool) = pool(workers - 1) {
            pool.in_place_scope(|scope| {
                for _ in 1..workers {
                    scope.spawn(|_| run.work());
                }
                run.lead(self.stop);
            });
        } else {
            run.lead(self.stop); // the OS gives no threads
        }
        if run.ended.load(Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// One parallel loop, shared by its threads.
struct Run<'a> {
    body: &'a (dyn Fn(usize, usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    slots: AtomicUsize,
    ended: AtomicBool,
}

impl Run<'_> {
    fn take(&self) -> Option<usize> {
        let task = self.next.fetch_add(1, Relaxed);
        (task < self.tasks && !self.ended.load(Relaxed)).then_some(task)
    }

    fn work(&self) {
        let slot = self.slots.fetch_add(1, Relaxed);
        while let Some(task) = self.take() {
            (self.body)(slot, task);
        }
    }

    /// The calling thread's part. It asks before its first task too: the others
    /// may leave it none.
    fn lead(&self, stop: &dyn Fn() -> bool) {
        loop {
            if stop() {
                self.ended.store(true, Relaxed);
            }
            let Some(task) = self.take() else { return };
            (self.body)(0, task);
        }
    }
}

/// Disjoint pieces of work, each taken by the one thread that runs its task.
pub struct Parts<T>(Vec<Mutex<Option<T>>>);

impl<T> Parts<T> {
    /// One for each task.
    pub fn new(parts: impl IntoIterator<Item = T>) -> Self {
        Parts(parts.into_iter().map(|p| Mutex::new(Some(p))).collect())
    }

    /// How many there are.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The piece of this task.
    ///
    /// # Panics
    /// If it was taken already: a task runs once.
    pub fn take(&self, task: usize) -> T {
        self.0[task].lock().unwrap_or_else(PoisonError::into_inner).take().expect("a task runs once")
    }
}

// ---------------------------------------------------------------- Rayon

type Pools = BTreeMap<usize, Option<Arc<rayon::ThreadPool>>>;

static POOLS: Mutex<Pools> = Mutex::new(Pools::new());

fn pools() -> MutexGuard<'static, Pools> {
    POOLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pool with `helpers` threads, made on first use and kept for the
/// process; `None` where the OS refuses threads.
fn pool(helpers: usize) -> Option<Arc<rayon::ThreadPool>> {
    let made = || {
        let build = rayon::ThreadPoolBuilder::new().num_threads(helpers).thread_name(|i| format!("lowbit-{i}")).build();
        match build {
            // What Rayon sets up on its threads' first job is set up before the lock is given back.
            Ok(pool) => {
                pool.broadcast(|_| ());
                Some(Arc::new(pool))
            }
            Err(_) => {
                REFUSED.store(true, Relaxed);
                None
            }
        }
    };
    pools().entry(helpers).or_insert_with(made).clone()
}

/// Makes forks of this process safe: one that comes while another thread makes
/// a pool waits for it, and the child, which has none of its parent's threads,
/// starts without pools. To be called before the first parallel call.
#[cfg(unix)]
pub fn prepare_for_forks() {
    thread_local! {
        static HELD: Cell<Option<MutexGuard<'static, Pools>>> = const { Cell::new(None) };
    }
    extern "C" fn before() {
        HELD.set(Some(pools()));
    }
    extern "C" fn in_parent() {
        HELD.take();
    }
    extern "C" fn in_child() {
        // Forgotten, not dropped: a pool ends by asking its threads to.
        if let Some(mut pools) = HELD.take() {
            mem::forget(mem::take(&mut *pools));
        }
    }
    static ONCE: Once = Once::new(); // the lock would be taken twice
    // SAFETY: the three are functions of this library, which is never unloaded.
    // It fails for want of memory alone; forks are then as safe as without it.
    ONCE.call_once(|| unsafe {
        libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child));
    });
}

/// This platform does not fork.
#[cfg(not(unix))]
pub fn prepare_for_forks() {}

static REFUSED: AtomicBool = AtomicBool::new(false);

/// Whether the OS has refused threads since this was last asked: calls then run
/// on the one that makes them.
pub fn threads_were_refused() -> bool {
    REFUSED.load(Relaxed) && REFUSED.swap(false, Relaxed)
}

// ---------------------------------------------------------------- OpenMP

type GompParallel =
    unsafe extern "C" fn(unsafe extern "C" fn(*mut libc::c_void), *mut libc::c_void, libc::c_uint, libc::c_uint);

struct OpenMp {
    parallel: GompParallel,
    pid: u32,
}

static OPENMP: OnceLock<OpenMp> = OnceLock::new();

/// The adopted library, unless this process is a forked child of the one that
/// adopted it: an OpenMP pool does not survive a fork.
fn openmp() -> Option<&'static OpenMp> {
    OPENMP.get().filter(|omp| omp.pid == std::process::id())
}

/// Takes the OpenMP library at `path`, which the process must have loaded
/// already, as a second pool (see the module's text). Returns whether it
/// offers `GOMP_parallel`; LLVM's and Intel's runtimes do on Linux.
#[cfg(unix)]
pub fn adopt_openmp(path: &std::ffi::CStr) -> bool {
    // SAFETY: `path` is a C string; RTLD_NOLOAD runs no initialiser.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    if handle.is_null() {
        return false;
    }
    // SAFETY: `handle` is not null and is never closed, so the address stays good.
    let address = unsafe { libc::dlsym(handle, c"GOMP_parallel".as_ptr()) };
    if address.is_null() {
        return false;
    }
    // SAFETY: this is the signature that the OpenMP ABI gives GOMP_parallel.
    let parallel = unsafe { mem::transmute::<*mut libc::c_void, GompParallel>(address) };
    OPENMP.get_or_init(|| OpenMp { parallel, pid: std::process::id() });
    true
}

/// No OpenMP library is adopted on this platform.
#[cfg(not(unix))]
pub fn adopt_openmp(_path: &std::ffi::CStr) -> bool {
    false
}

struct Region<'a> {
    run: &'a Run<'a>,
    stop: &'a dyn Fn() -> bool,
    leader: std::thread::ThreadId,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

impl OpenMp {
    fn run(&self, run: &Run, workers: usize, stop: &dyn Fn() -> bool) {
        unsafe extern "C" fn entry(data: *mut libc::c_void) {
            // SAFETY: `data` is the `Region` below, alive until GOMP_parallel returns.
            let region = unsafe { &*data.cast::<Region>() };
            // `stop` may be neither Send nor Sync: only the leader calls it.
            let leads = std::thread::current().id() == region.leader;
            let done =
                catch_unwind(AssertUnwindSafe(|| if leads { region.run.lead(region.stop) } else { region.run.work() }));
            if let Err(panic) = done {
                region.run.ended.store(true, Relaxed);
                *region.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
        }
        let region = Region { run, stop, leader: std::thread::current().id(), panic: Mutex::new(None) };
        let workers = libc::c_uint::try_from(workers).unwrap_or(libc::c_uint::MAX);
        let data = (&raw const region).cast_mut().cast();
        // SAFETY: `entry` matches the ABI, does not unwind, and `region` outlives the call.
        unsafe { (self.parallel)(entry, data, workers, 0) };
        if let Some(panic) = region.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }
}

// ---------------------------------------------------------------- how many

static CHOSEN: AtomicU32 = AtomicU32::new(0);

/// Sets the threads of calls that name none; 0 goes back to what the machine
/// and its environment allow.
pub fn set_default_threads(n: u32) {
    CHOSEN.store(n, Relaxed);
}

/// Threads of a call that names none: what [`set_default_threads`] chose, else
/// `LOWBIT_NUM_THREADS`, else `RAYON_NUM_THREADS`, else the cores that affinity
/// and cgroup allow, at most `OMP_NUM_THREADS` where a scheduler set it.
pub fn default_threads() -> usize {
    match CHOSEN.load(Relaxed) {
        0 => threading().0,
        n => n as usize,
    }
}

/// The default thread count that this machine and its environment give, and
/// a sentence for each variable that could not be read. Found once.
pub fn threading() -> &'static (usize, Vec<String>) {
    static FOUND: OnceLock<(usize, Vec<String>)> = OnceLock::new();
    FOUND.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let most = cores.saturating_mul(4);
        let mut complaints = Vec::new();
        let mut read = |name: &str| -> Option<usize> {
            let text = std::env::var_os(name)?;
            let text = text.to_string_lossy();
            // OpenMP's may be a list, a count for each level of nesting.
            let first = if name == "OMP_NUM_THREADS" { text.split(',').next() } else { None };
            match first.unwrap_or(&text).trim().parse::<usize>() {
                Ok(n) if n > 0 => Some(n),
                _ => {
                    complaints.push(format!("{name}: expected a count of threads, got '{text}'; ignored"));
                    None
                }
            }
        };
        let wanted = ["LOWBIT_NUM_THREADS", "RAYON_NUM_THREADS"].into_iter().find_map(|name| Some((name, read(name)?)));
        let threads = match wanted {
            Some((name, n)) if n > most => {
                complaints.push(format!("{name}: {n} threads on {cores} cores; using {most}"));
                most
            }
            Some((_, n)) => n,
            None => read("OMP_NUM_THREADS").map_or(cores, |cap| cores.min(cap)),
        };
        (threads, complaints)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_threads() {
        for threads in [1, 2, 7] {
            let seen: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
            Ctl::new(threads)
                .for_each(seen.len(), &|slot, task| {
                    assert!(slot < threads);
                    seen[task].fetch_add(1, Relaxed);
                })
                .unwrap();
            assert!(seen.iter().all(|n| n.load(Relaxed) == 1));
        }
    }

    #[test]
    fn a_stop_ends_the_call() {
        for threads in [1, 3] {
            let stop = || true;
            let ctl = Ctl::with(threads, false, &stop);
            assert_eq!(ctl.for_each(1_000_000, &|_, _| {}), Err(Error::Interrupted));
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller() {
        let caught = catch_unwind(|| Ctl::new(3).for_each(64, &|_, task| assert_ne!(task, 40)));
        assert!(caught.is_err());
    }
}
