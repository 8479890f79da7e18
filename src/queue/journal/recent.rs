//! The recently accepted events, for deduplication. Only reads, independently of the writer.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use crate::event::Origin;
use crate::queue::journal::files::{self, Segment};
use crate::queue::journal::scan::{Item, Records};

/// Visits records received at or after `since`: the newest segment first, at most the `most` newest in all. Within a
/// segment they are visited in order. Settled records are among them as long as their segment was not recycled.
///
/// # Errors
/// A segment cannot be read.
pub(crate) fn recent(
    directory: &Path,
    since: SystemTime,
    most: usize,
    visit: &mut dyn FnMut(&Origin, &[u8]),
) -> io::Result<()> {
    let mut left = most;
    // Unreadable segments are left out: repeats of their events are published again.
    for segment in files::read_headers(directory)?.0.iter().rev() {
        if left == 0 {
            break;
        }
        // Two passes: if there are too many, the newest are visited, and none is held in memory.
        let found = walk(directory, segment, since, &mut |_, _| {})?;
        let mut older = found.saturating_sub(left);
        walk(directory, segment, since, &mut |origin, body| {
            if older > 0 {
                older -= 1;
            } else if left > 0 {
                left -= 1;
                visit(origin, body);
            }
        })?;
    }
    Ok(())
}

/// Visits all records of a segment received since then; returns their number.
fn walk(
    directory: &Path,
    segment: &Segment,
    since: SystemTime,
    visit: &mut dyn FnMut(&Origin, &[u8]),
) -> io::Result<usize> {
    let Some(header) = segment.block.header else { return Ok(0) };
    let Some((file, _)) = files::read_header(directory, segment.number)? else { return Ok(0) };
    // Last written before then: all its records were received before.
    if file.metadata()?.modified()? < since {
        return Ok(0);
    }
    let mut found = 0;
    let mut records = Records::new(directory, file, segment, header);
    loop {
        match records.next()? {
            Item::Record { origin, body, .. } if origin.received >= since => {
                found += 1;
                visit(&origin, body);
            }
            Item::End { .. } => return Ok(found),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::queue::journal::tests::rig::{Rig, received};

    fn bodies(rig: &Rig, since: SystemTime, most: usize) -> Vec<String> {
        let mut bodies = Vec::new();
        let mut visit = |_: &Origin, body: &[u8]| bodies.push(String::from_utf8_lossy(body).into_owned());
        recent(&rig.directory(), since, most, &mut visit).unwrap();
        bodies
    }

    #[test]
    fn visits_the_newest_segment_first_and_of_too_many_the_newest() {
        let mut rig = Rig::new(1 << 20, 8192);
        // Two of these fill a segment.
        for sequence in 1..=5 {
            rig.append(&format!("{sequence}{}", " ".repeat(1500)));
        }
        let trimmed = |since, most| -> Vec<String> {
            bodies(&rig, since, most).iter().map(|body| body.trim().to_owned()).collect()
        };
        assert_eq!(trimmed(SystemTime::UNIX_EPOCH, 10), ["5", "3", "4", "1", "2"]);
        assert_eq!(trimmed(SystemTime::UNIX_EPOCH, 2), ["5", "4"]);
        assert_eq!(trimmed(received(4), 10), ["5", "4"], "received before");
        let later = SystemTime::now() + Duration::from_hours(1);
        assert_eq!(trimmed(later, 10), [] as [&str; 0]);
    }
}
