//! Networks of addresses, as `10.0.0.0/8` writes them. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// All addresses that begin with the same bits (RFC 4632, RFC 4291 section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// All bits behind the prefix are zero.
    base: IpAddr,
    /// How many bits are the network's: 0 to 32, or to 128.
    prefix: u8,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Neither an address nor one with a prefix.
    #[error("it is neither an address nor a network")]
    Malformed,
    /// The address goes on behind the prefix: one of them is not what was meant.
    #[error("the address has bits behind the prefix; that network is `{0}`")]
    HostBits(Network),
}

impl Network {
    /// Whether `address` is one of its own. An IPv4 address that came over an IPv6 socket (`::ffff:10.0.0.1`) is the IPv4 address.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.base.is_ipv4() == address.is_ipv4() && cut(address, self.prefix) == self.base
    }

    /// Whether it holds every address of its kind.
    #[must_use]
    pub const fn is_everything(self) -> bool {
        self.prefix == 0
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    /// `10.0.0.0/8`, `fd00::/8`, or an address alone, which is a network of one.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_no_address| NetworkError::Malformed)?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => whole,
            Some(digits) => {
                let prefix = digits.parse::<u8>().ok().filter(|prefix| prefix.to_string() == digits);
                prefix.filter(|prefix| *prefix <= whole).ok_or(NetworkError::Malformed)?
            }
        };
        // `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
        let (address, prefix) = match address.to_canonical() {
            v4 @ IpAddr::V4(_) if whole == 128 && prefix >= 96 => (v4, prefix - 96),
            IpAddr::V4(_) | IpAddr::V6(_) => (address, prefix),
        };
        let network = Self { base: cut(address, prefix), prefix };
        if network.base == address { Ok(network) } else { Err(NetworkError::HostBits(network)) }
    }
}

/// The first `prefix` bits of an address; the others are zero.
fn cut(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
            Ipv4Addr::from(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0);
            Ipv6Addr::from(v6.to_bits() & mask).into()
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_contain_what_begins_like_them() {
        for (network, address, is_in) in [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
            ("192.0.2.6/31", "192.0.2.7", true),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "10.0.0.1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::1", "::1", true),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert_eq!(parsed.contains(address.parse().unwrap()), is_in, "{address} in {network}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in
            ["", "/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/08", "10.0.0.0/+8", "10.0/16", "::/129", "proxy.example"]
        {
            assert_eq!(text.parse::<Network>(), Err(NetworkError::Malformed), "{text}");
        }
        let error = "10.1.2.3/8".parse::<Network>().unwrap_err();
        assert_eq!(error.to_string(), "the address has bits behind the prefix; that network is `10.0.0.0/8`");
        assert!(matches!("fd00::1/64".parse::<Network>(), Err(NetworkError::HostBits(_))));
    }

    proptest! {
        #[test]
        fn a_network_is_read_as_it_is_written_and_holds_what_its_bits_say(
            base in any::<u32>(), other in any::<u32>(), prefix in 0_u8..=32,
        ) {
            let network = Network { base: cut(Ipv4Addr::from(base).into(), prefix), prefix };
            prop_assert_eq!(network.to_string().parse::<Network>(), Ok(network));
            let is_same = (0..u32::from(prefix)).all(|bit| (base ^ other) & (1 << (31 - bit)) == 0);
            prop_assert_eq!(network.contains(Ipv4Addr::from(other).into()), is_same);
        }
    }
}
