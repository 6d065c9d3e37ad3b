//! Network namespaces that end with this process, however it ends.
//!
//! Each lives in a thread: what the thread starts or opens is in its namespace, and the kernel removes the namespace
//! with the thread. Nothing is named, mounted or left behind.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread;

use anyhow::Context;
use tokio::runtime;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Moves the process into a network namespace of its own, and into a user namespace where it is not root.
///
/// Must be called before any other thread exists: the kernel gives a user namespace only to a single thread.
pub(crate) fn enter() -> io::Result<()> {
    match unshare(libc::CLONE_NEWNET) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        outcome => return outcome,
    }
    let itself = fs::metadata("/proc/self")?;
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1", itself.uid()))?;
    fs::write("/proc/self/gid_map", format!("0 {} 1", itself.gid()))
}

#[expect(unsafe_code, reason = "the standard library makes no namespaces")]
fn unshare(kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: the call takes no pointer and frees nothing; it changes only what the calling thread sees of the
    // system.
    let outcome = unsafe { libc::unshare(kinds) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A network namespace beside the process's own.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// The thread that keeps it, as `ip link set ... netns` takes it.
    pub(crate) thread: String,
    handle: Handle,
    _until: oneshot::Sender<()>,
}

impl Namespace {
    /// Makes a namespace with nothing in it.
    pub(crate) async fn new(name: &'static str) -> anyhow::Result<Self> {
        let (made_tx, made_rx) = oneshot::channel();
        let (until_tx, until_rx) = oneshot::channel::<()>();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let (runtime, thread) = match enter_thread() {
                Ok(made) => made,
                // Whoever made the thread has given up if this cannot be told.
                Err(error) => return drop(made_tx.send(Err(error))),
            };
            if made_tx.send(Ok((thread, runtime.handle().clone()))).is_ok() {
                // Ends, with an error, when the namespace is dropped.
                let _ = runtime.block_on(until_rx);
            }
        })?;
        let (thread, handle) =
            made_rx.await?.with_context(|| format!("no network namespace for the {name}"))?;
        Ok(Self { thread, handle, _until: until_tx })
    }

    /// Runs a task inside the namespace to its end.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<T> {
        self.handle.spawn(task).await?
    }

    /// Starts a task inside the namespace that goes on as long as it does.
    pub(crate) fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(task);
    }
}

/// Moves the calling thread into a new network namespace; returns a runtime that stays in it, and the thread's id.
fn enter_thread() -> io::Result<(runtime::Runtime, String)> {
    unshare(libc::CLONE_NEWNET)?;
    let thread = fs::read_link("/proc/thread-self")?;
    let id = thread.file_name().map(|id| id.to_string_lossy().into_owned());
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    Ok((runtime, id.unwrap_or_default()))
}
