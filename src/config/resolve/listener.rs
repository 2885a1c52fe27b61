//! The entries of `broker.listeners`.

use std::path::Path;

use super::Resolver;
use super::value::{Item, Section, beside};
use crate::broker::{Bind, Listener, auth};
use crate::config::keys;

/// Its owner and group may connect.
const SOCKET_MODE_DEFAULT: u32 = 0o660;

impl Resolver<'_> {
    pub(super) fn listeners(&mut self, list: &Item<'_>, auth: &auth::Config) -> Vec<Listener> {
        let mut listeners: Vec<Listener> = Vec::new();
        for item in self.items(list) {
            let section = self.section(&item, &keys::LISTENER);
            if section.is_wrong {
                continue;
            }
            let Some(bind) = section.get("bind") else {
                let hint = "such as `{ bind: \"127.0.0.1:1883\", anonymous: true }`";
                self.mistakes.error(&section.place, "a listener needs `bind`", hint.to_owned());
                continue;
            };
            let anonymous = self.boolean(section.get("anonymous")).unwrap_or(false);
            let Some(address) = self.bind(&section, &bind) else { continue };
            let has_port = address.address().is_none_or(|address| address.port() != 0);
            if has_port && listeners.iter().any(|listener| listener.bind == address) {
                self.mistakes.error(bind.place(), format!("{address} is bound twice"), None);
            }
            self.check_access(&bind, &address, anonymous, auth);
            let limits = self.listener_limits(section.get("limits"));
            listeners.push(Listener { bind: address, anonymous, limits });
        }
        if self.items(list).is_empty() {
            let hint = "leave the key out for 127.0.0.1:1883, anonymous";
            self.mistakes.error(list.place(), "`listeners` names no listener", hint.to_owned());
        }
        listeners
    }

    /// `127.0.0.1:1883`, or `unix:/run/tidegate/mqtt.sock` with `mode`.
    fn bind(&mut self, section: &Section<'_>, bind: &Item<'_>) -> Option<Bind> {
        let text = self.text(Some(bind.clone()))?;
        let Some(path) = text.value.strip_prefix("unix:") else {
            if let Some(mode) = section.get("mode") {
                let hint = "such as `bind: unix:/run/tidegate/mqtt.sock`";
                self.mistakes.error(mode.place(), "`mode` has a meaning only for a Unix socket", hint.to_owned());
            }
            return self.socket_addr(Some(bind.clone())).map(Bind::Tcp);
        };
        if path.is_empty() {
            self.mistakes.error(
                bind.place(),
                "`unix:` needs a path",
                "such as `unix:/run/tidegate/mqtt.sock`".to_owned(),
            );
            return None;
        }
        let path = beside(text.place(), Path::new(path));
        let mode = section.get("mode").map_or(Some(SOCKET_MODE_DEFAULT), |mode| self.mode(mode))?;
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let wrong = format!("a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes");
            self.mistakes.error(bind.place(), wrong, "such as `unix:/run/tidegate/mqtt.sock`".to_owned());
        }
        Some(Bind::Unix { path, mode })
    }

    /// Permissions in octal digits.
    fn mode(&mut self, item: Item<'_>) -> Option<u32> {
        let text = self.text(Some(item))?;
        let digits = text.value.strip_prefix("0o").unwrap_or(&text.value);
        let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| digits.len() >= 3 && (0..=0o777).contains(mode));
        if mode.is_none() {
            let wrong = format!("`{}` is no file mode", text.given);
            let hint = "three octal digits, such as `\"0660\"`: owner and group, and nobody else";
            self.mistakes.error(text.place(), wrong, hint.to_owned());
        }
        mode
    }
}

/// Of `sun_path`, less the end and the `.new` that it is bound under first (Linux: 108 bytes).
const SOCKET_PATH_BYTES_MAX: usize = 103;
