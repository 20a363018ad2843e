//! How every entry calls a kernel: arguments in, interpreter released, panics
//! and errors mapped.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use lowbit_kernels::{Ctl, Error, Isa, Result as KernelResult};
use numpy::{Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::create_exception;
use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError, PyRuntimeError, PyRuntimeWarning, PyValueError};
use pyo3::prelude::*;

create_exception!(lowbit, InternalError, PyRuntimeError, "A defect of lowbit itself: please report it.");

/// How often a long call asks the interpreter for Ctrl-C.
const SIGNALS_EVERY: Duration = Duration::from_millis(50);

/// Work below this many elementary operations runs without releasing the
/// interpreter or starting threads: both cost more than they give.
pub const SMALL: usize = 1 << 16;

/// The instruction set that `isa=` names; the default of the process for None.
pub fn isa(name: Option<&str>) -> PyResult<Isa> {
    match name {
        None => crate::system::default_isa(),
        Some(name) => Isa::named(name).map_err(to_py),
    }
}

/// What a call may use: at most `threads` threads (None: the default), on the
/// adopted OpenMP pool if `openmp`.
#[derive(Clone, Copy, Default)]
pub struct Threads {
    pub threads: Option<usize>,
    pub openmp: bool,
}

/// Runs `kernel`, which costs about `work` elementary operations, with the
/// interpreter released; its errors and panics become Python exceptions.
pub fn run<T, F>(py: Python<'_>, work: usize, threads: Threads, kernel: F) -> PyResult<T>
where
    T: Send,
    F: FnOnce(&Ctl) -> KernelResult<T> + Send,
{
    let guarded = |ctl: &Ctl| catch_unwind(AssertUnwindSafe(|| kernel(ctl)));
    let (outcome, pending) = if work <= SMALL {
        (guarded(&Ctl::new(1)), None)
    } else {
        py.detach(|| {
            let asked = Cell::new(Instant::now());
            let pending: RefCell<Option<PyErr>> = RefCell::new(None);
            let stop = || {
                if asked.get().elapsed() < SIGNALS_EVERY {
                    return false;
                }
                asked.set(Instant::now());
                match Python::attach(|py| py.check_signals()) {
                    Ok(()) => false,
                    Err(error) => {
                        *pending.borrow_mut() = Some(error);
                        true
                    }
                }
            };
            let count = threads.threads.unwrap_or_else(lowbit_kernels::default_threads);
            let outcome = guarded(&Ctl::with(count, threads.openmp, &stop));
            (outcome, pending.into_inner())
        })
    };
    if lowbit_kernels::threads_were_refused() {
        let text = c"the system refused threads; calls run on one";
        PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), text, 1)?;
    }
    match outcome {
        Ok(Err(Error::Interrupted)) => Err(pending.unwrap_or_else(|| PyKeyboardInterrupt::new_err(()))),
        Ok(result) => result.map_err(to_py),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(InternalError::new_err(format!("a kernel panicked: {}", text.unwrap_or("no message"))))
        }
    }
}

/// A kernel's error as Python's own.
pub fn to_py(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Value(_) | Error::Isa(..) => PyValueError::new_err(text),
        Error::Memory(_) => PyMemoryError::new_err(text),
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
    }
}

/// A C-contiguous array to read; the caller has checked its dtype.
pub fn read<'py, T: Element>(name: &str, array: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    array.cast::<PyArrayDyn<T>>()?.try_readonly().map_err(|e| PyValueError::new_err(format!("{name}: {e}")))
}

/// A C-contiguous array to write.
pub fn write<'py, T: Element>(name: &str, array: &Bound<'py, PyAny>) -> PyResult<PyReadwriteArrayDyn<'py, T>> {
    array.cast::<PyArrayDyn<T>>()?.try_readwrite().map_err(|e| PyValueError::new_err(format!("{name}: {e}")))
}
