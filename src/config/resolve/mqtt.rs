//! The section `mqtt` of a link.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::Url;

use super::Resolver;
use super::broker::{PACKET_BYTES_MAX, PACKET_BYTES_MIN};
use super::remote::MESSAGE_DEFAULT;
use super::value::{Item, Section, Text};
use crate::config::keys;
use crate::links::{Secret, mqtt};
use crate::message::Qos;
use crate::topic::TopicName;

/// A first address that is back is found within that time.
const FAIL_BACK: Duration = Duration::from_secs(60);

const SCHEMES: [&str; 4] = ["mqtt", "mqtts", "ws", "wss"];

/// Where MQTT is, by habit, on a server that speaks WebSocket.
const WEBSOCKET_PATH: &str = "/mqtt";

impl Resolver<'_> {
    /// `arrivals`: where its source may keep what is under way.
    pub(super) fn mqtt(&mut self, item: &Item<'_>, arrivals: PathBuf) -> Option<mqtt::Config> {
        let section = self.section(item, &keys::MQTT);
        let versions = [("5", mqtt::Version::V5), ("5.0", mqtt::Version::V5), ("3.1.1", mqtt::Version::V4)];
        let version = self.choice(section.get("version"), &versions).unwrap_or_default();
        let qos = self.choice(section.get("qos"), &[("1", Qos::AtLeastOnce), ("2", Qos::ExactlyOnce)]);
        let client_id = self.text(section.get("client_id")).map(|text| text.value);
        let keep_alive = self.duration(section.get("keep_alive"), Duration::from_secs(1)..=Duration::from_secs(65_535));
        let packet = self.size(section.get("max_packet_size"), PACKET_BYTES_MIN..=PACKET_BYTES_MAX);
        let fail_back = self.duration(section.get("fail_back"), Duration::from_secs(1)..=Duration::from_secs(86_400));
        let alpn = self.texts(section.get("alpn"));
        let tls = self.remote_tls(&section, alpn);
        let state_topic = self.state_topic(section.get("state_topic"));
        let looked_up = self.looked_up(&section, "password_file", "password_command");
        let urls = self.mqtt_urls(&section)?;
        let addresses: Vec<Option<mqtt::Address>> = urls.iter().map(|(text, url)| self.address(text, url)).collect();
        let addresses = addresses.into_iter().collect::<Option<Vec<_>>>()?;
        if addresses.iter().all(|address| !address.tls) {
            self.check_no_tls_keys(&section, &["ca", "cert", "key", "server_name", "alpn"], "mqtts://");
        }
        if let (Some(item), 1) = (section.get("fail_back"), addresses.len()) {
            let hint = "`url` takes a list: the first is the home".to_owned();
            self.mistakes.warning(item.place(), "`fail_back` does nothing with one address", hint);
        }
        let (user, password) = self.login(&urls, looked_up);
        Some(mqtt::Config {
            addresses,
            fail_back: fail_back.unwrap_or(FAIL_BACK),
            tls,
            version,
            qos: qos.unwrap_or(Qos::AtLeastOnce),
            client_id,
            user,
            password,
            state_topic,
            keep_alive_s: keep_alive.and_then(|pause| u16::try_from(pause.as_secs()).ok()).unwrap_or(30),
            max_packet_size: packet.unwrap_or(MESSAGE_DEFAULT),
            arrivals: Some(arrivals).filter(|_| qos == Some(Qos::ExactlyOnce)),
        })
    }

    fn texts(&mut self, item: Option<Item<'_>>) -> Vec<String> {
        let Some(item) = item else { return Vec::new() };
        let items = self.items(&item);
        items.into_iter().filter_map(|item| self.text(Some(item))).map(|text| text.value).collect()
    }

    fn state_topic(&mut self, item: Option<Item<'_>>) -> Option<String> {
        let text = self.text(item)?;
        if let Err(error) = TopicName::new(&text.value) {
            self.mistakes.error(text.place(), format!("`{}` is no topic: {error}", text.shown()), None);
            return None;
        }
        Some(text.value)
    }

    /// A file or a command, by the names of their keys.
    pub(super) fn looked_up(
        &mut self,
        section: &Section<'_>,
        file: &'static str,
        command: &'static str,
    ) -> Option<Secret> {
        let (at_file, at_command) = (section.get(file), section.get(command));
        if let (Some(_), Some(item)) = (&at_file, &at_command) {
            self.mistakes.error(item.place(), format!("`{file}` says already where it is"), None);
        }
        let file = self.readable(at_file).map(Secret::File);
        let command = at_command.map(|item| Secret::Command(self.texts(Some(item))));
        file.or(command)
    }

    /// One or several; all are looked at before the first that is wrong ends it.
    fn mqtt_urls<'n>(&mut self, section: &Section<'n>) -> Option<Vec<(Text<'n>, Url)>> {
        let example = "such as `mqtt://hq.example:1883`";
        let Some(item) = section.get("url") else {
            self.missing(section, "url", example);
            return None;
        };
        let urls: Vec<_> = self.items(&item).into_iter().map(|item| self.parsed_url(item, &SCHEMES, example)).collect();
        if urls.is_empty() {
            self.mistakes.error(item.place(), "`url` names no address", example.to_owned());
            return None;
        }
        urls.into_iter().collect()
    }

    fn address(&mut self, text: &Text<'_>, url: &Url) -> Option<mqtt::Address> {
        let (tls, websocket, port_default) = match url.scheme() {
            "mqtt" => (false, false, 1883),
            "mqtts" => (true, false, 8883),
            "ws" => (false, true, 80),
            "wss" => (true, true, 443),
            scheme => {
                self.wrong_scheme(text, scheme, &SCHEMES);
                return None;
            }
        };
        let has_path = !matches!(url.path(), "" | "/") || url.query().is_some();
        if has_path && !websocket {
            let wrong = "an MQTT URL ends with the port: topics stand in the routes";
            self.mistakes.error(text.place(), wrong, None);
        }
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let path = if has_path { format!("{}{query}", url.path()) } else { WEBSOCKET_PATH.to_owned() };
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port().unwrap_or(port_default);
        Some(mqtt::Address { host, port, tls, websocket: websocket.then_some(path) })
    }

    /// User and password stand in the first URL, and are those of all.
    fn login(&mut self, urls: &[(Text<'_>, Url)], looked_up: Option<Secret>) -> (Option<String>, Secret) {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let of = |url: &Url| (url.username().to_owned(), url.password().map(str::to_owned));
        let Some(((text, first), others)) = urls.split_first() else { return (None, Secret::None) };
        let (user, password) = of(first);
        for (other, url) in others {
            if of(url) != (String::new(), None) && of(url) != of(first) {
                let wrong = "user and password are those of the first URL: all addresses are one remote";
                self.mistakes.error(other.place(), wrong, None);
            }
        }
        if looked_up.is_some() && password.is_some() {
            let wrong = "there is a password in the URL, and another is to be looked up";
            self.mistakes.error(text.place(), wrong, "leave `:PASSWORD` out of the URL".to_owned());
        }
        let user = (!user.is_empty()).then(|| decoded(&user));
        let text = password.map_or(Secret::None, |password| Secret::Text(decoded(&password)));
        (user, looked_up.unwrap_or(text))
    }
}
