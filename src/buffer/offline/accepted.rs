//! What `audit --accept` said is known: `accepted-damage.json` in the link's folder, so that damage that an operator has
//! looked at does not hide the next one.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::format::FORMAT;
use super::super::storage::{Storage, read_up_to};
use super::audit::{Finding, LinkAudit, Trouble};

/// The file's name.
pub(in crate::buffer) const ACCEPTED: &str = "accepted-damage.json";
/// Larger ones are not believed in.
const BYTES_MAX: usize = 16 << 20;

/// See the module.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Accepted {
    version: u16,
    pub(super) at_ms: u64,
    /// Lost records that are known, counted or about to be.
    pub(super) dropped_damaged: u64,
    findings: Vec<Finding>,
}

impl Accepted {
    pub(super) fn load(storage: &dyn Storage, dir: &Path) -> io::Result<Self> {
        let file = match storage.open_to_read(&dir.join(ACCEPTED)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let bytes = read_up_to(&*file, 0, BYTES_MAX).unwrap_or_default();
        // A file that does not read accepts nothing: what is wrong is shown once more.
        Ok(serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// Everything that the report found is known from now on, beside what was before.
    pub(super) fn take(&mut self, report: &LinkAudit) {
        self.version = FORMAT;
        self.at_ms = crate::clock::wall().0;
        // The next start, or the reader, will count what is missing now.
        let known = report.ledger.dropped_damaged + report.missing;
        self.dropped_damaged = self.dropped_damaged.max(known);
        for finding in &report.findings {
            if !self.knows(finding) {
                self.findings.push(Finding { accepted: true, ..finding.clone() });
            }
        }
    }

    pub(super) fn knows(&self, finding: &Finding) -> bool {
        self.findings.iter().any(|known| {
            let same = known.trouble == finding.trouble && known.file == finding.file;
            same && match finding.trouble {
                Trouble::Missing => within(finding.records, known.records),
                Trouble::Damaged if known.bytes.is_some() => within(finding.bytes, known.bytes),
                Trouble::PutAside => true,
                Trouble::Damaged | Trouble::Ledger | Trouble::DeadLetters => known.text == finding.text,
            }
        })
    }

    pub(super) fn save(&self, storage: &dyn Storage, dir: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        replace(storage, dir, ACCEPTED, &bytes)
    }
}

fn within(inner: Option<(u64, u64)>, outer: Option<(u64, u64)>) -> bool {
    inner.zip(outer).is_some_and(|((from, to), (low, high))| low <= from && to <= high)
}

/// Writes a small file as a whole: what was there before stays until the new one is durable.
pub(in crate::buffer) fn replace(storage: &dyn Storage, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (path, new) = (dir.join(name), dir.join(format!("{name}.new")));
    match storage.remove(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = storage.create(&new)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    storage.rename(&new, &path)?;
    storage.sync_dir(dir)
}
