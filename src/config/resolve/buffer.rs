//! The section `buffer` of a link, and what all buffers need together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Resolver;
use super::broker::YEAR;
use super::link::Draft;
use super::value::Item;
use crate::buffer::{Compression, Config, Keep, SyncMode, WhenFull};
use crate::config::keys;
use crate::config::raw::Value;
use crate::units::{ByteSize, parse_duration};

/// R3.
const SIZE_DEFAULT: ByteSize = ByteSize(1 << 30);
/// Room for a few segments; a smaller buffer would drop all of its backlog at once.
const SIZE_MIN: ByteSize = ByteSize(1 << 20);
/// What a record holds beside the packet that brought it: stamps, destination, key. Generously.
const HEADERS_BYTES: u64 = 64 << 10;
const SIZE_MAX: ByteSize = ByteSize(1 << 50);
/// No publisher waits for longer than that.
const SPILL_AFTER_MAX: Duration = Duration::from_secs(60);
/// How long `sync: spill` waits for the remote.
const SPILL_AFTER: Duration = Duration::from_secs(2);

impl Resolver<'_> {
    pub(super) fn buffer(&mut self, item: Option<Item<'_>>, dir: PathBuf) -> Config {
        let mut config = Config {
            dir,
            max_size: SIZE_DEFAULT,
            max_age: None,
            when_full: WhenFull::default(),
            sync: SyncMode::default(),
            min_free: None,
            compress: Compression::None,
            keep_delivered: None,
        };
        let Some(item) = item else { return config };
        let section = self.section(&item, &keys::BUFFER);
        if let Some(size) = self.size(section.get("max_size"), SIZE_MIN..=SIZE_MAX) {
            config.max_size = size;
        }
        config.max_age = self.duration(section.get("max_age"), Duration::from_secs(1)..=100 * YEAR);
        let choices = [
            ("drop_oldest", WhenFull::DropOldest),
            ("drop_newest", WhenFull::DropNewest),
            ("reject", WhenFull::Reject),
            ("block", WhenFull::Block),
        ];
        if let Some(when_full) = self.choice(section.get("when_full"), &choices) {
            config.when_full = when_full;
        }
        let spill_after = self.duration(section.get("spill_after"), Duration::from_millis(10)..=SPILL_AFTER_MAX);
        if let Some(sync) = self.sync(section.get("sync"), spill_after) {
            config.sync = sync;
        }
        if let Some(item) = section.get("spill_after")
            && !matches!(config.sync, SyncMode::Spill(_))
        {
            let hint = "only `sync: spill` waits for the remote before it writes".to_owned();
            self.mistakes.warning(item.place(), "`spill_after` does nothing here", hint);
        }
        config.min_free = self.size(section.get("min_free"), ByteSize(0)..=SIZE_MAX);
        let codecs = [("none", Compression::None), ("zstd", Compression::Zstd), ("lz4", Compression::Lz4)];
        config.compress = self.choice(section.get("compress"), &codecs).unwrap_or_default();
        config.keep_delivered = section.get("keep_delivered").and_then(|item| self.keep(&item));
        if let (Some(item), SyncMode::Spill(_)) = (section.get("keep_delivered"), config.sync) {
            let hint = "`sync: group` writes every message, and `compress` makes that less";
            let wrong = "`sync: spill` does not write what the remote confirms in time: there is nothing to keep of it";
            self.mistakes.error(item.place(), wrong, hint.to_owned());
        }
        config
    }

    /// `24h`, or `{ age: 24h, size: 1GiB }` with one of both at least.
    fn keep(&mut self, item: &Item<'_>) -> Option<Keep> {
        let ages = Duration::from_secs(1)..=100 * YEAR;
        if matches!(item.node.value, Value::Scalar(_)) {
            let age = self.duration(Some(item.clone()), ages)?;
            return Some(Keep { age: Some(age), size: None });
        }
        let section = self.section(item, &keys::KEEP);
        let (age, size) = (section.get("age"), section.get("size"));
        if age.is_none() && size.is_none() && !section.is_wrong {
            let hint = "such as `keep_delivered: 24h` or `keep_delivered: { age: 24h, size: 1GiB }`";
            self.mistakes.error(&section.place, "`keep_delivered` does not say for how long", hint.to_owned());
        }
        let (age, size) = (self.duration(age, ages), self.size(size, SIZE_MIN..=SIZE_MAX));
        (age.is_some() || size.is_some()).then_some(Keep { age, size })
    }

    fn sync(&mut self, item: Option<Item<'_>>, spill_after: Option<Duration>) -> Option<SyncMode> {
        let text = self.text(item)?;
        let mode = match text.value.as_str() {
            "group" => return Some(SyncMode::Group),
            "spill" => return Some(SyncMode::Spill(spill_after.unwrap_or(SPILL_AFTER))),
            "never" => SyncMode::Never,
            interval => match parse_duration(interval) {
                Ok(interval) if !interval.is_zero() => SyncMode::Interval(interval),
                Ok(_) | Err(_) => {
                    let wrong = format!(
                        "`{}` is no way to sync: `group`, `spill`, `never` or an interval such as `200ms`",
                        text.shown()
                    );
                    self.mistakes.error(text.place(), wrong, None);
                    return None;
                }
            },
        };
        // R1: promise 1 does not hold then.
        let wrong = "publishers are acknowledged before their messages are safe: a power cut loses what was not synced";
        self.mistakes.warning(text.place(), wrong, "`group`, the default, syncs before it acknowledges".to_owned());
        Some(mode)
    }

    /// A buffer takes no record that needs more than half of it.
    pub(super) fn check_room(&mut self, links: &[Draft<'_>], largest: ByteSize) {
        for link in links.iter().filter(|link| link.has_sink) {
            let Some(place) = &link.max_size_place else { continue };
            let Some(size) = link.config.as_ref().map(|config| config.buffer.max_size) else { continue };
            if size.0 / 2 < largest.0.saturating_add(HEADERS_BYTES) {
                let wrong =
                    format!("the largest message, {largest}, would not fit: a record may take half of a buffer");
                let hint = "raise `max_size`, or lower the broker's `max_packet_size`";
                self.mistakes.warning(place, wrong, hint.to_owned());
            }
        }
    }

    /// R3: what the buffers may hold together has to fit on the disk.
    pub(super) fn check_disk(&mut self, links: &[Draft<'_>], data_dir: &Path) {
        let used = links.iter().filter(|link| link.has_sink);
        let sizes = used.filter_map(|link| link.config.as_ref().map(|config| (config.buffer.max_size, link)));
        let sum = sizes.clone().fold(0_u64, |sum, (size, _)| sum.saturating_add(size.0));
        let Some((_, largest)) = sizes.max_by_key(|(size, _)| *size) else { return };
        let Some(disk) = (self.env.disk_bytes)(data_dir) else { return };
        if sum > disk {
            let (sum, disk) = (ByteSize(sum), ByteSize(disk));
            let place = largest.max_size_place.as_ref().unwrap_or(&largest.place);
            let wrong = format!("the buffers may grow to {sum} together, and the disk of `data_dir` holds {disk}");
            let hint =
                if largest.max_size_place.is_some() { "lower `max_size`" } else { "set `buffer: { max_size: .. }`" };
            self.mistakes.error(place, wrong, format!("{hint}; without the key it is {SIZE_DEFAULT} a link"));
        }
    }
}
