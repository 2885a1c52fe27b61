//! Every key of `routes.yaml`, section by section: what is accepted, and what later versions bring. `docs/routes.md` has to
//! name the former; the latter are reported as not built yet, never silently ignored.

/// The keys of one section.
#[derive(Debug)]
pub(super) struct Keys {
    /// As in `docs/routes.md`: `links.NAME.buffer`; empty for the top level.
    pub(super) section: &'static str,
    pub(super) accepted: &'static [&'static str],
    pub(super) planned: &'static [&'static str],
}

pub(super) const TOP: Keys = Keys {
    section: "",
    accepted: &["site", "data_dir", "max_memory", "reload", "broker", "admin", "links", "routes"],
    planned: &["telemetry"],
};

pub(super) const BROKER: Keys = Keys {
    section: "broker",
    accepted: &[
        "listeners",
        "max_packet_size",
        "receive_maximum",
        "in_flight",
        "in_flight_bytes",
        "session_expiry_max",
        "session_messages_max",
        "session_bytes_max",
        "retained_messages_max",
        "retained_bytes_max",
        "connect_timeout",
        "connections_max",
        "sessions_max",
        "handshakes_max",
        "keep_alive_max",
        "server_reference",
        "sys_interval",
        "auth",
        "deny_subscribe",
        "limits",
    ],
    planned: &[],
};

pub(super) const AUTH: Keys = Keys {
    section: "broker.auth",
    accepted: &["users", "jwt", "http", "ldap", "failed_logins_max", "login_max", "groups", "acl", "acl_file"],
    planned: &[],
};

pub(super) const JWT: Keys = Keys {
    section: "broker.auth.jwt",
    accepted: &[
        "key",
        "secret",
        "jwks",
        "ca",
        "timeout",
        "refresh",
        "algorithms",
        "issuer",
        "audience",
        "leeway",
        "user_claim",
        "groups_claim",
        "acl_claim",
        "require_expiry",
    ],
    planned: &[],
};

pub(super) const AUTH_HTTP: Keys = Keys {
    section: "broker.auth.http",
    accepted: &["url", "timeout", "headers", "ca", "cache", "requests_max"],
    planned: &[],
};

pub(super) const LDAP: Keys = Keys {
    section: "broker.auth.ldap",
    accepted: &["url", "bind_dn", "search", "groups", "starttls", "ca", "timeout", "cache", "connections_max"],
    planned: &[],
};

pub(super) const LDAP_SEARCH: Keys =
    Keys { section: "broker.auth.ldap.search", accepted: &["base", "filter", "bind_dn", "password"], planned: &[] };

pub(super) const LDAP_GROUPS: Keys =
    Keys { section: "broker.auth.ldap.groups", accepted: &["base", "filter", "attribute"], planned: &[] };

pub(super) const ACL_RULE: Keys = Keys {
    section: "broker.auth.acl",
    accepted: &["user", "client", "group", "anonymous", "publish", "subscribe", "deny_publish", "deny_subscribe"],
    planned: &[],
};

pub(super) const USER_LIMITS: Keys = Keys {
    section: "broker.limits",
    accepted: &[
        "user",
        "group",
        "anonymous",
        "connections",
        "sessions",
        "message_rate",
        "byte_rate",
        "burst",
        "over_rate",
        "max_packet_size",
        "session_messages_max",
        "session_bytes_max",
    ],
    planned: &[],
};

pub(super) const LISTENER: Keys = Keys {
    section: "broker.listeners",
    accepted: &["bind", "mode", "anonymous", "certificate_user", "tls", "websocket", "proxy_protocol", "limits"],
    planned: &[],
};

pub(super) const TLS: Keys = Keys {
    section: "broker.listeners.tls",
    accepted: &["cert", "key", "client_ca", "crl", "client_cert", "versions"],
    planned: &["ciphers", "psk"],
};

pub(super) const WEBSOCKET: Keys =
    Keys { section: "broker.listeners.websocket", accepted: &["path", "origins"], planned: &[] };

pub(super) const PROXY_PROTOCOL: Keys =
    Keys { section: "broker.listeners.proxy_protocol", accepted: &["from"], planned: &[] };

pub(super) const LISTENER_LIMITS: Keys = Keys {
    section: "broker.listeners.limits",
    accepted: &[
        "connections",
        "connections_per_address",
        "handshakes_per_address",
        "connection_rate",
        "message_rate",
        "byte_rate",
        "burst",
        "over_rate",
        "max_packet_size",
        "sessions",
        "session_messages_max",
        "session_bytes_max",
    ],
    planned: &[],
};

pub(super) const ADMIN: Keys =
    Keys { section: "admin", accepted: &["bind"], planned: &["tls", "auth", "token", "users"] };

pub(super) const LINK: Keys = Keys {
    section: "links.NAME",
    accepted: &[
        "mqtt",
        "rabbitmq",
        "kafka",
        "buffer",
        "in_flight",
        "retry",
        "stall_after",
        "connect_timeout",
        "drain",
        "rate",
        "active",
        "copies",
        "renamed_from",
    ],
    planned: &["dead_letters", "amqp10", "nats"],
};

pub(super) const MQTT: Keys = Keys {
    section: "links.NAME.mqtt",
    accepted: &[
        "url",
        "fail_back",
        "version",
        "qos",
        "client_id",
        "password_file",
        "password_command",
        "state_topic",
        "keep_alive",
        "ca",
        "cert",
        "key",
        "server_name",
        "alpn",
        "max_packet_size",
    ],
    planned: &[],
};

pub(super) const RABBITMQ: Keys = Keys {
    section: "links.NAME.rabbitmq",
    accepted: &[
        "url",
        "exchange",
        "declare",
        "queues",
        "mandatory",
        "unroutable",
        "prefetch",
        "streams",
        "topic_escape",
        "ca",
        "cert",
        "key",
        "server_name",
    ],
    planned: &[],
};

pub(super) const DECLARE: Keys =
    Keys { section: "links.NAME.rabbitmq.declare", accepted: &["type", "durable", "arguments"], planned: &[] };

pub(super) const QUEUE: Keys = Keys {
    section: "links.NAME.rabbitmq.queues.NAME",
    accepted: &["type", "durable", "arguments", "bindings"],
    planned: &[],
};

pub(super) const QUEUE_BINDING: Keys = Keys {
    section: "links.NAME.rabbitmq.queues.NAME.bindings",
    accepted: &["exchange", "key", "arguments"],
    planned: &[],
};

pub(super) const KAFKA: Keys = Keys {
    section: "links.NAME.kafka",
    accepted: &[
        "brokers",
        "acks",
        "compression",
        "group",
        "options",
        "max_message",
        "exactly_once",
        "transactional_id",
        "tombstones",
        "start",
        "token_file",
        "token_command",
    ],
    planned: &["schema_registry"],
};

pub(super) const BUFFER: Keys = Keys {
    section: "links.NAME.buffer",
    accepted: &["max_size", "max_age", "when_full", "sync", "spill_after", "min_free", "compress", "keep_delivered"],
    planned: &["encryption"],
};

pub(super) const KEEP: Keys =
    Keys { section: "links.NAME.buffer.keep_delivered", accepted: &["age", "size"], planned: &[] };

pub(super) const RETRY: Keys = Keys { section: "links.NAME.retry", accepted: &["min", "max"], planned: &[] };

pub(super) const RATE: Keys =
    Keys { section: "links.NAME.rate", accepted: &["messages", "bytes", "burst"], planned: &[] };

pub(super) const DRAIN: Keys = Keys { section: "links.NAME.drain", accepted: &["live_first"], planned: &[] };

pub(super) const LIVE_FIRST: Keys = Keys { section: "links.NAME.drain.live_first", accepted: &["share"], planned: &[] };

pub(super) const ROUTE: Keys = Keys {
    section: "routes",
    accepted: &[
        "name",
        "from",
        "except",
        "where",
        "to",
        "key",
        "ttl",
        "priority",
        "qos",
        "retain",
        "pick",
        "drop",
        "set",
        "payload",
        "envelope",
        "throttle",
        "sample",
        "dedup",
        "decompress",
        "decode",
        "compress",
        "batch",
    ],
    planned: &["transform", "retained"],
};

pub(super) const ENVELOPE: Keys = Keys {
    section: "routes.envelope",
    accepted: &["format", "source", "type", "subject", "id", "time"],
    planned: &["extensions"],
};

pub(super) const DEDUP: Keys = Keys { section: "routes.dedup", accepted: &["by", "again"], planned: &[] };

pub(super) const BATCH: Keys =
    Keys { section: "routes.batch", accepted: &["format", "count", "bytes", "linger"], planned: &[] };

/// A file of tests for `tidegate test`: no section of `routes.yaml`.
pub(super) const SUITE: Keys = Keys { section: "a file of tests", accepted: &["config", "tests"], planned: &[] };

pub(super) const CASE: Keys =
    Keys { section: "tests", accepted: &["name", "before", "message", "expect"], planned: &[] };

pub(super) const GIVEN: Keys = Keys {
    section: "tests.message",
    accepted: &[
        "topic",
        "from",
        "payload",
        "payload_base64",
        "qos",
        "retain",
        "client_id",
        "user",
        "time",
        "content_type",
        "response_topic",
        "properties",
    ],
    planned: &[],
};

pub(super) const EXPECTED: Keys = Keys {
    section: "tests.expect",
    accepted: &[
        "to",
        "route",
        "key",
        "payload",
        "decompressed",
        "contains",
        "qos",
        "retain",
        "priority",
        "content_type",
        "response_topic",
        "batch",
        "properties",
        "dead_letter",
    ],
    planned: &[],
};

pub(super) const ALL: [&Keys; 33] = [
    &TOP,
    &BROKER,
    &AUTH,
    &ACL_RULE,
    &LISTENER,
    &TLS,
    &WEBSOCKET,
    &PROXY_PROTOCOL,
    &LISTENER_LIMITS,
    &USER_LIMITS,
    &ADMIN,
    &LINK,
    &MQTT,
    &RABBITMQ,
    &DECLARE,
    &QUEUE,
    &QUEUE_BINDING,
    &KAFKA,
    &BUFFER,
    &KEEP,
    &RETRY,
    &RATE,
    &DRAIN,
    &LIVE_FIRST,
    &ROUTE,
    &ENVELOPE,
    &DEDUP,
    &BATCH,
    &JWT,
    &AUTH_HTTP,
    &LDAP,
    &LDAP_SEARCH,
    &LDAP_GROUPS,
];

/// What a key is called in other programs, and what says the same here: section, keys, hint.
const HABITS: [(&Keys, &[&str], &str); 33] = [
    (&BROKER, &["users", "password_file", "acl", "acl_file", "groups"], IN_AUTH),
    (&AUTH, &["password_file", "passwords", "passwd", "file"], "its name here is `users`"),
    (&ACL_RULE, &["read", "write", "readwrite", "topic", "topics", "deny", "allow", "username", "client_id"], IN_RULE),
    (&MQTT, &["host", "address", "port", "username", "user", "password"], IN_MQTT_URL),
    (&MQTT, &["websocket", "websockets", "ws", "protocol"], "begin `url` with `ws://` or `wss://`"),
    (&MQTT, &["urls", "addresses", "servers", "fallback"], "`url` takes a list: the first is the home"),
    (&MQTT, &["will", "lwt", "last_will"], "`state_topic` is where the link says `online` and `offline`"),
    (&RABBITMQ, &["host", "hostname", "port", "username", "user", "password", "vhost", "virtual_host"], IN_AMQP_URL),
    (&RABBITMQ, &["queue", "routing_key"], "it stands in the route: `to: LINK/ROUTING.KEY`, `from: LINK/QUEUE`"),
    (&QUEUE, &["x-queue-type", "queue_type"], "its name here is `type`"),
    (&QUEUE, &["exchange", "routing_key", "key"], "write `bindings: [ { exchange: NAME, key: ROUTING.KEY } ]`"),
    (&QUEUE_BINDING, &["routing_key", "binding_key", "source"], "write `{ exchange: NAME, key: ROUTING.KEY }`"),
    (&KAFKA, &["bootstrap.servers", "bootstrap_servers", "servers", "url"], "its name here is `brokers`"),
    (&KAFKA, &["topic", "topics"], "it stands in the route: `to: LINK/TOPIC`, `from: LINK/TOPIC`"),
    (&BROKER, &["port", "bind", "listen", "listener", "address", "anonymous", "allow_anonymous"], IN_LISTENERS),
    (&LISTENER, &["port", "listener", "address", "host"], "it is a part of `bind`, such as `bind: \"127.0.0.1:1883\"`"),
    (&LISTENER, &["cert", "certfile", "key", "keyfile", "cafile", "client_ca", "crl", "crlfile", "ssl"], IN_TLS),
    (&LISTENER, &["protocol", "websockets", "ws"], "write `websocket: true`"),
    (&PROXY_PROTOCOL, &["trusted", "proxies", "trusted_proxies", "allow", "addresses"], "its name here is `from`"),
    (&RATE, &["message_rate", "messages_per_second"], "its name here is `messages`: `messages: 2000/s`"),
    (&RATE, &["byte_rate", "bandwidth", "bytes_per_second"], "its name here is `bytes`: `bytes: 1MiB/s`"),
    (&ROUTE, &["filter", "filters", "condition", "when", "if", "match", "selector"], "its name here is `where`"),
    (&ROUTE, &["source", "sources", "topic", "topics", "input", "subscribe"], "its name here is `from`"),
    (
        &ROUTE,
        &["destination", "destinations", "target", "targets", "sink", "output", "publish"],
        "its name here is `to`",
    ),
    (&ROUTE, &["expiry", "expires", "expire", "message_expiry", "max_age"], "its name here is `ttl`"),
    (&ROUTE, &["template", "body", "value"], "its name here is `payload`"),
    (&BUFFER, &["size", "max_bytes", "bytes", "limit", "capacity", "quota"], "its name here is `max_size`"),
    (&BUFFER, &["age", "ttl", "retention", "max_time"], "its name here is `max_age`"),
    (&BUFFER, &["overflow", "on_full", "full", "policy"], "its name here is `when_full`"),
    (&BUFFER, &["path", "dir", "directory", "folder"], "all buffers are in `data_dir`, which stands at the top level"),
    (&BATCH, &["size", "max_size", "max_bytes"], "its name here is `bytes`"),
    (&BATCH, &["interval", "timeout", "max_wait", "delay"], "its name here is `linger`"),
    (&TLS, &["certfile", "keyfile", "cafile", "ca", "crlfile", "require_certificate", "tls_version"], IN_TLS),
];
const IN_AUTH: &str = "it stands below `auth`: `auth: { users: users.passwd, acl: [ .. ] }`";
const IN_RULE: &str =
    "a rule has `user`, `client`, `group`, and `publish`, `subscribe`, `deny_publish`, `deny_subscribe`";
const IN_MQTT_URL: &str = "it is a part of `url`: `mqtt://USER:PASSWORD@HOST:PORT`";
const IN_AMQP_URL: &str = "it is a part of `url`: `amqp://USER:PASSWORD@HOST:PORT/VHOST`";
const IN_TLS: &str =
    "write `tls: { cert: server.pem, key: server.key }`, with `client_ca: ca.pem` for clients' certificates";
const IN_LISTENERS: &str = "write `listeners: [ { bind: \"127.0.0.1:1883\", anonymous: true } ]`";

/// A key that says what kind a link is.
pub(super) fn is_kind(key: &str) -> bool {
    matches!(key, "mqtt" | "rabbitmq" | "kafka")
}

/// A key of a remote, with a plain value behind it.
pub(super) fn is_of_remote(key: &str) -> bool {
    let is_section = matches!(key, "declare" | "queues" | "streams" | "options");
    !is_section && [&MQTT, &RABBITMQ, &KAFKA].iter().any(|kind| kind.accepted.contains(&key))
}

/// What says the same here as a key that other programs have.
pub(super) fn habit(keys: &Keys, key: &str) -> Option<&'static str> {
    let key = key.to_ascii_lowercase();
    let mut habits = HABITS.iter().filter(|(of, names, _)| of.section == keys.section && names.contains(&&*key));
    let own = habits.next().map(|(_, _, hint)| *hint);
    // A mosquitto.conf has no sections: its options are written anywhere.
    let is_like_it = [TOP.section, BROKER.section, LISTENER.section].contains(&keys.section);
    own.or_else(|| without_space(keys, &key)).or_else(|| super::mosquitto::hint(&key).filter(|_| is_like_it))
}

/// `qos:1` is one word to YAML.
fn without_space(keys: &Keys, key: &str) -> Option<&'static str> {
    let (key, value) = key.split_once(':')?;
    let is_key = !value.is_empty() && keys.accepted.contains(&key);
    is_key.then_some("a `:` ends a key only with a space behind it: `KEY: VALUE`")
}

/// The name among `known` that was most likely meant by `given`.
pub(super) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_ascii_lowercase();
    let limit = (given.chars().count() / 3).max(1);
    let scored = known.into_iter().map(|name| (distance(&given, &name.to_ascii_lowercase()), name));
    // As many changes as there are characters make any name of any other.
    let limit = limit.min(given.chars().count().saturating_sub(1));
    scored.filter(|(distance, _)| *distance <= limit).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// How many characters must be put in, left out, changed, or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut previous = None;
    for (row, ca) in a.chars().enumerate() {
        let mut current = vec![row + 1];
        for (col, cb) in b.iter().enumerate() {
            let at = |row: &[usize], col: usize| row.get(col).copied().unwrap_or(usize::MAX - 1);
            let changed = at(&last, col) + usize::from(ca != *cb);
            let mut best = changed.min(at(&last, col + 1) + 1).min(at(&current, col) + 1);
            let swapped = col > 0 && previous == Some(*cb) && b.get(col - 1) == Some(&ca);
            if swapped && !before_last.is_empty() {
                best = best.min(at(&before_last, col - 1) + 1);
            }
            current.push(best);
        }
        before_last = std::mem::replace(&mut last, current);
        previous = Some(ca);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_names_every_key_in_its_section() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/routes.md");
        let reference = std::fs::read_to_string(file).unwrap();
        for keys in ALL {
            let heading =
                if keys.section.is_empty() { "## Top level".to_owned() } else { format!("# `{}`", keys.section) };
            let section = reference.split_once(&format!("{heading}\n"));
            let section = section.unwrap_or_else(|| panic!("docs/routes.md has no section {heading}")).1;
            let section = section.split("\n#").next().unwrap();
            let mut named: Vec<_> =
                section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
            let mut accepted = keys.accepted.to_vec();
            named.sort_unstable();
            accepted.sort_unstable();
            assert_eq!(named, accepted, "{heading}");
            for row in section.lines().filter(|line| line.starts_with("| `")) {
                let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
                let full = cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty());
                assert!(full, "{heading}: a key, its type with its unit, its default, an example: {row}");
            }
        }
    }

    #[test]
    fn the_reference_names_every_key_of_a_file_of_tests() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/routes.md");
        let reference = std::fs::read_to_string(file).unwrap();
        let told = reference.split_once("\n### Route tests\n").unwrap().1.split("\n## ").next().unwrap();
        let words: Vec<&str> = told.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        for keys in [&SUITE, &CASE, &GIVEN, &EXPECTED] {
            let missing: Vec<_> = keys.accepted.iter().filter(|key| !words.contains(key)).collect();
            assert!(missing.is_empty(), "{}: {missing:?}", keys.section);
        }
    }

    #[test]
    fn the_reference_names_every_key_of_later_versions_and_no_other() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/routes.md");
        let reference = std::fs::read_to_string(file).unwrap();
        let table = reference.split_once("\n## Not built yet\n").unwrap().1.split("\n## ").next().unwrap();
        let rows = table.lines().filter(|line| line.starts_with("| `") || line.starts_with("| top level"));
        let row = |line: &str| {
            let (section, keys) = line.trim_matches('|').split_once(" | ").unwrap();
            let keys: Vec<_> = keys.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            (section.trim().trim_matches('`').replace("top level", ""), keys)
        };
        let mut named: Vec<_> = rows.map(row).collect();
        let planned = ALL.iter().filter(|keys| !keys.planned.is_empty());
        let mut known: Vec<_> = planned
            .map(|keys| (keys.section.to_owned(), keys.planned.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>()))
            .collect();
        named.sort_unstable();
        known.sort_unstable();
        assert_eq!(named, known);
    }

    #[test]
    fn no_key_is_both_accepted_and_planned_or_a_habit() {
        for keys in ALL {
            assert!(keys.accepted.iter().chain(keys.planned).all(|key| habit(keys, key).is_none()), "{}", keys.section);
            assert!(keys.planned.iter().all(|key| !keys.accepted.contains(key)), "{}", keys.section);
        }
    }

    #[test]
    fn the_nearest_name_is_the_one_that_was_meant() {
        let known = ["cloud", "hq", "lake", "max_size", "max_age"];
        for (given, meant) in [
            ("clod", Some("cloud")),
            ("cluod", Some("cloud")),
            ("Cloud", Some("cloud")),
            ("max_sise", Some("max_size")),
            ("maxsize", Some("max_size")),
            ("qh", Some("hq")),
            ("warehouse", None),
            ("x", None),
        ] {
            assert_eq!(nearest(given, known), meant, "{given}");
        }
    }
}
