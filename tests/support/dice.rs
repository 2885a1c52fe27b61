//! Chance that can be had again.

use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// By the seed in the environment variable `name`, or by one that is printed under it.
pub(crate) fn dice(name: &str) -> StdRng {
    let seed = std::env::var(name).ok().map(|seed| seed.parse().unwrap_or_else(|_| panic!("{name} is a number")));
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("{name}={seed}");
    StdRng::seed_from_u64(seed)
}
