//! What a run does, drawn from its seed.

use super::action::{LastWord, Name, Post, Sub, Terms};
use crate::message::Qos;
use crate::wire::{RetainHandling, Version};

pub(super) const NAMES: [Name; 4] = ["a", "b", "c", "d"];
pub(super) const TOPICS: [&str; 3] = ["t/a", "t/b", "u"];
const FILTERS: [&str; 8] = ["t/a", "t/+", "#", "u", "t/+", "$share/g/t/+", "$share/g/#", "$share/h/t/a"];

/// What the broker's default allows in flight.
const IN_FLIGHT: usize = 256;
/// The longest that a session is kept by default.
const EXPIRY_MAX_S: u64 = 7 * 86_400;

/// Splitmix64: one seed is one run.
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub(super) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.roll(of.len() as u64)).unwrap()]
    }

    /// One time in so many.
    pub(super) fn hits(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// A client's next step. Where it makes no sense it is left out, or the client connects first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Connect,
    Drop,
    Disconnect,
    Subscribe,
    Unsubscribe,
    Publish,
    Release,
    Ack,
    Complete,
    Pass,
    Crash,
}

pub(super) fn step(dice: &mut Dice) -> Step {
    match dice.roll(100) {
        0..10 => Step::Connect,
        10..16 => Step::Drop,
        16..21 => Step::Disconnect,
        21..37 => Step::Subscribe,
        37..40 => Step::Unsubscribe,
        40..66 => Step::Publish,
        66..70 => Step::Release,
        70..83 => Step::Ack,
        83..90 => Step::Complete,
        90..95 => Step::Pass,
        _ => Step::Crash,
    }
}

pub(super) fn seconds(dice: &mut Dice) -> u64 {
    if dice.hits(8) { 700_000 } else { 1_000 * (1 + dice.roll(4)) }
}

pub(super) fn terms(dice: &mut Dice, who: Name, version: Version, number: &mut u32) -> Terms {
    let clean = dice.hits(4);
    let expiry_s = match version {
        Version::V5 => dice.one(&[0, 1_500, 6_500, 6_500, EXPIRY_MAX_S]),
        Version::V31 | Version::V311 if clean => 0,
        Version::V31 | Version::V311 => EXPIRY_MAX_S,
    };
    let window = if version.is_v5() { dice.one(&[1, 2, IN_FLIGHT, IN_FLIGHT]) } else { IN_FLIGHT };
    let will = dice.hits(3).then(|| {
        *number += 1;
        let delay_s = if version.is_v5() { dice.one(&[0, 500, 2_500]) } else { 0 };
        LastWord { post: post(dice, who, version, format!("will-{who}-{number}")), delay_s }
    });
    Terms { version, clean, expiry_s, window, will }
}

pub(super) fn post(dice: &mut Dice, from: Name, version: Version, text: String) -> Post {
    let retain = dice.hits(3);
    // An empty one is told from others by nothing, so it clears and goes with QoS 0.
    let clears = retain && dice.hits(4);
    let qos = if clears { Qos::AtMostOnce } else { qos(dice.one(&[0, 1, 1, 2, 2])) };
    let expiry_s = (version.is_v5() && dice.hits(4)).then(|| dice.one(&[500, 2_500]));
    let text = if clears { String::new() } else { text };
    Post { from, text, topic: dice.one(&TOPICS), qos, retain, expiry_s, expires_s: None }
}

pub(super) fn filter(dice: &mut Dice) -> &'static str {
    dice.one(&FILTERS)
}

pub(super) fn sub(dice: &mut Dice, filter: &str, version: Version) -> Sub {
    let qos = qos(dice.one(&[0, 1, 2, 2]));
    let plain = Sub { qos, no_local: false, as_published: false, handling: RetainHandling::Send, id: None };
    if !version.is_v5() {
        return plain;
    }
    let handling = dice.one(&[RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::DoNotSend]);
    Sub {
        // No Local with a shared subscription is a Protocol Error (MQTT-3.8.3-4).
        no_local: !filter.starts_with("$share/") && dice.hits(3),
        as_published: dice.hits(2),
        handling,
        id: dice.hits(2).then(|| u32::try_from(1 + dice.roll(9)).unwrap()),
        ..plain
    }
}

fn qos(bits: u8) -> Qos {
    Qos::from_bits(bits).unwrap()
}
