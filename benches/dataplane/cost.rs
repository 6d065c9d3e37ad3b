//! Time on the clock and on CPUs, and what many of them have in common.

use std::time::Duration;
use std::time::Instant;

/// What one piece of work took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    /// Of this process and of the programs that it started and that ended meanwhile, the kernel's work included.
    pub(crate) cpu: Duration,
}

/// A point in time to measure from.
pub(crate) struct Start(Instant, Duration);

impl Start {
    pub(crate) fn now() -> Self {
        Self(Instant::now(), cpu_time())
    }

    pub(crate) fn cost(&self) -> Cost {
        Cost { wall: self.0.elapsed(), cpu: cpu_time().saturating_sub(self.1) }
    }
}

/// Does something and tells what it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let start = Start::now();
    let done = work();
    (done, start.cost())
}

#[expect(unsafe_code, reason = "no safe crate among the dependencies wraps getrusage(2)")]
fn usage(who: libc::c_int) -> libc::rusage {
    let mut usage = std::mem::MaybeUninit::zeroed();
    // SAFETY: the kernel writes one rusage to the place that it is given, and all zeros are one as well.
    unsafe {
        libc::getrusage(who, usage.as_mut_ptr());
        usage.assume_init()
    }
}

fn cpu_time() -> Duration {
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN]
        .map(usage)
        .map(|usage| time(usage.ru_utime) + time(usage.ru_stime))
        .into_iter()
        .sum()
}

/// The most memory that this process had, and the largest of the programs that it started, in megabytes.
pub(crate) fn peak_memory() -> (f64, f64) {
    // What getrusage(2) tells of a process itself begins with the peak of the one that started it.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    let started = usage(libc::RUSAGE_CHILDREN).ru_maxrss as f64;
    (own.unwrap() * 1024.0 / 1e6, started * 1024.0 / 1e6)
}

/// The costs of the same work done again and again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Costs(Vec<Cost>);

impl Costs {
    pub(crate) fn add(&mut self, cost: Cost) {
        self.0.push(cost);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Milliseconds on the clock that this part of all stayed below.
    pub(crate) fn wall(&self, per_mille: usize) -> f64 {
        quantile(self.0.iter().map(|cost| cost.wall).collect(), per_mille).as_secs_f64() * 1e3
    }

    /// Milliseconds of CPU time on average: single ones are shorter than the kernel's clock for it.
    pub(crate) fn cpu(&self) -> f64 {
        let sum: Duration = self.0.iter().map(|cost| cost.cpu).sum();
        sum.as_secs_f64() * 1e3 / self.0.len() as f64
    }
}

/// The value that this part of all stayed below.
pub(crate) fn quantile<T: Copy + Ord + Default>(mut values: Vec<T>, per_mille: usize) -> T {
    values.sort_unstable();
    values.get(values.len() * per_mille / 1000).or(values.last()).copied().unwrap_or_default()
}
