//! Who gets a core first: the sender, while latency is measured, as if it had a machine of its own.

use std::sync::Once;

/// This thread is scheduled before all ordinary ones, until dropped.
pub struct First;

impl First {
    /// From now on, where this process may ask for it; says so once where it may not.
    pub fn new() -> Self {
        if let Err(error) = schedule(libc::SCHED_FIFO, 1) {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                eprintln!("latency counts the sender's own waits for a core: it may not go first: {error}");
            });
        }
        Self
    }
}

impl Drop for First {
    fn drop(&mut self) {
        // What it was, where it could not go first.
        let _ = schedule(libc::SCHED_OTHER, 0);
    }
}

/// Schedules this thread by another policy.
#[expect(unsafe_code, reason = "the C library offers it in no other way")]
fn schedule(policy: libc::c_int, sched_priority: libc::c_int) -> std::io::Result<()> {
    let parameter = libc::sched_param { sched_priority };
    // SAFETY: reads one structure, which lives until it returns.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
