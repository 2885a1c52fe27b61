//! What stands in a `mosquitto.conf`, and what says the same here: for those who write its options into `routes.yaml`. The
//! names are those of mosquitto.conf(5), 2.0 and 2.1. Keys that are the same here (`max_packet_size`, `sys_interval`) are not among them.

/// What says the same here as an option of `mosquitto.conf`; `None`: it is none, or is told elsewhere.
pub(super) fn hint(option: &str) -> Option<&'static str> {
    let of_family = |name: &&str| name.strip_suffix('*').is_some_and(|start| option.starts_with(start));
    let is_named = |names: &[&str]| names.iter().any(|name| *name == option || of_family(name));
    OPTIONS.iter().find(|(names, _)| is_named(names)).map(|(_, hint)| *hint)
}

/// Names, and the hint. A `*` stands for all that begin so.
const OPTIONS: [(&[&str], &str); 42] = [
    (
        &["password_file", "acl_file"],
        "write `auth: { users: FILE, acl_file: FILE }` below `broker`: the files work as they are, for all listeners",
    ),
    (&["allow_anonymous", "listener_allow_anonymous"], "write `anonymous: true` in the listener"),
    (
        &["auth_plugin*", "plugin", "plugin_*", "global_plugin", "auth_opt_*"],
        "there are no plugins: see `jwt`, `http` and `ldap` of `auth`",
    ),
    (&["clientid_prefixes"], "write a rule in `auth: { acl: [ .. ] }` with `client: \"PREFIX*\"`"),
    (
        &["check_retain_source"],
        "there is no such choice: what is retained stays until it is replaced or removed, whoever published it",
    ),
    (
        &["psk_file", "psk_hint"],
        "there are no pre-shared keys: use certificates, `tls: { cert: .., key: .., client_ca: .. }`",
    ),
    (
        &["use_username_as_clientid"],
        "there is no such choice: a session belongs to the user who made it, and a rule of `acl` may bind `user` and `client`",
    ),
    (&["use_identity_as_username"], "write `certificate_user: cn` in the listener"),
    (&["use_subject_as_username"], "write `certificate_user: subject` in the listener"),
    (
        &["per_listener_settings"],
        "leave it out: `anonymous` and `limits` are each listener's own, users and rules are the broker's",
    ),
    (
        &["listener", "port", "bind_address", "bind_interface", "socket_domain"],
        "write `broker: { listeners: [ { bind: \"127.0.0.1:1883\" } ] }`; IPv6 is `[::1]:1883`",
    ),
    (&["protocol"], "MQTT is what a listener speaks; for WebSocket write `websocket: true` in it"),
    (&["accept_protocol_versions"], "there is no such choice: MQTT 3.1, 3.1.1 and 5.0 are all spoken"),
    (&["http_dir", "http_api"], "web pages are another program's business; the listener's is `websocket: true`"),
    (&["websockets_origin"], "write `websocket: { origins: [ .. ] }` in the listener"),
    (&["websockets_headers_size"], "it is fixed: 8KiB"),
    (
        &["mount_point"],
        "there is none: rules with `{user}` or `{client_id}` keep clients apart, and a route gives topics other names",
    ),
    (
        &["cafile", "certfile", "keyfile", "crlfile"],
        "write `tls: { cert: .., key: .., client_ca: .., crl: .. }` in the listener",
    ),
    (&["capath"], "put its files into one, and write `tls: { client_ca: FILE }` in the listener"),
    (&["require_certificate"], "write `tls: { client_cert: required }` or `optional` in the listener"),
    (&["tls_version"], "write `tls: { versions: \"1.3\" }` in the listener; without it 1.2 and 1.3"),
    (
        &["ciphers", "ciphers_tls1.3", "dhparamfile", "tls_engine*", "tls_keyform"],
        "leave it out: there are only ciphers that are safe, and keys in PEM files",
    ),
    (&["disable_client_cert_date_checks"], "there is no such choice: a certificate that has ended is refused"),
    (&["enable_proxy_protocol", "proxy_protocol_v2*"], "write `proxy_protocol: { from: [ PROXIES ] }` in the listener"),
    (
        &["max_connections"],
        "write `limits: { connections: .. }` in the listener; `connections_max` of `broker` is for all together",
    ),
    (&["global_max_connections"], "its name here is `connections_max`, of `broker`"),
    (
        &["global_max_clients"],
        "its name here is `sessions_max`, of `broker`; for each user write `limits: [ { user: \"*\", sessions: .. } ]`",
    ),
    (
        &["max_inflight_messages", "max_inflight_bytes"],
        "write `in_flight` and `in_flight_bytes` below `broker` for what is sent, `receive_maximum` for what is taken",
    ),
    (
        &["max_queued_messages", "max_queued_bytes"],
        "write `session_messages_max` and `session_bytes_max` below `broker`",
    ),
    (&["queue_qos0_messages"], "there is no such choice: QoS 0 is not kept for sessions that are away"),
    (&["max_keepalive"], "its name here is `keep_alive_max`, of `broker`"),
    (&["message_size_limit"], "its name here is `max_packet_size`: of `broker`, or of `limits`"),
    (&["memory_limit"], "its name here is `max_memory`, which stands at the top level"),
    (&["packet_buffer_size"], "memory is bounded part by part: docs/limits.md"),
    (
        &[
            "max_qos",
            "retain_available",
            "max_topic_alias",
            "max_topic_alias_broker",
            "upgrade_outgoing_qos",
            "allow_duplicate_messages",
            "set_tcp_nodelay",
            "retry_interval",
            "enable_control_api",
        ],
        "there is no such choice; docs/broker.md says what holds (`From mosquitto.conf to routes.yaml`)",
    ),
    (
        &["retain_expiry_interval"],
        "a publisher says it (Message Expiry Interval of MQTT 5); `retained_messages_max` and `retained_bytes_max` bound what is retained",
    ),
    (&["persistent_client_expiration"], "its name here is `session_expiry_max`, of `broker`"),
    (
        &["allow_zero_length_clientid", "auto_id_prefix", "listener_auto_id_prefix"],
        "leave it out: an empty client id gets a name that begins with `tg-`, where its session is not kept",
    ),
    (
        &["persistence", "persistence_*", "retained_persistence", "autosave_*"],
        "what is to be kept is on disk at once, below `data_dir`, which stands at the top level",
    ),
    (
        &["log_*", "connection_messages", "websockets_log_level"],
        "the log goes to standard error: `TIDEGATE_LOG` says what, docs/operations.md",
    ),
    (
        &["include_dir", "pid_file", "user"],
        "leave it out: `-c FOLDER` reads several files, and packaging/tidegate.service starts it as a user of its own",
    ),
    (
        &[
            "connection",
            "address",
            "addresses",
            "topic",
            "bridge_*",
            "local_*",
            "remote_*",
            "notification_topic",
            "notifications",
            "notifications_local_only",
            "cleansession",
            "clientid",
            "username",
            "password",
            "idle_timeout",
            "keepalive_interval",
            "restart_timeout",
            "round_robin",
            "start_type",
            "threshold",
            "try_private",
        ],
        "a bridge is a link and its routes: routes/bridge-to-mqtt.yaml shows one",
    ),
];

#[cfg(test)]
mod tests {
    use super::super::keys;

    /// The options of mosquitto.conf(5), one a line.
    fn manual() -> impl Iterator<Item = &'static str> {
        include_str!("../../tests/config/mosquitto-options.txt").lines().filter(|line| !line.starts_with('#'))
    }

    #[test]
    fn every_option_of_the_manual_has_a_hint_wherever_it_may_be_written() {
        assert!(manual().count() > 120);
        for option in manual() {
            for section in [&keys::TOP, &keys::BROKER, &keys::LISTENER] {
                let is_ours = ["max_packet_size", "sys_interval"].contains(&option);
                let is_told =
                    keys::habit(section, option).is_some() || is_ours && keys::BROKER.accepted.contains(&option);
                assert!(is_told, "`{option}` in `{}`", section.section);
            }
        }
    }

    #[test]
    fn every_option_of_the_manual_is_in_the_table_of_the_guide() {
        let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/broker.md")).unwrap();
        let table = guide.split_once("## From mosquitto.conf to routes.yaml").unwrap().1;
        // What is before the second bar of a row.
        let left: String = table.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next()).collect();
        for option in manual() {
            let families =
                ["bridge_", "local_", "remote_", "log_", "persistence_", "autosave_", "tls_engine_", "plugin_opt_"];
            let of_family =
                families.iter().any(|family| option.starts_with(family) && left.contains(&format!("`{family}..`")));
            let is_named = ["`", " "].iter().any(|end| left.contains(&format!("`{option}{end}")));
            assert!(of_family || is_named, "`{option}` is not in the table");
        }
    }
}
