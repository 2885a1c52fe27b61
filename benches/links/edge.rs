//! What stands at the edge: it takes MQTT and carries to the far server.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::process::{Process, accepts, bound, free_port};

/// The build of this run.
pub(super) const OURS: &str = env!("CARGO_BIN_EXE_tidegate");

/// A build of Tidegate.
pub(super) struct Program<'a> {
    pub(super) path: &'a Path,
    /// Where to keep what it logs.
    pub(super) log: Option<PathBuf>,
}

/// A running edge.
pub(super) struct Edge {
    pub(super) port: u16,
    process: Process,
    dir: TempDir,
}

impl Edge {
    /// Tidegate with a link and a route to it (the rest of a configuration).
    pub(super) fn gateway(program: &Program<'_>, link: &str, dir: &Path) -> Self {
        let (dir, port) = (tempfile::tempdir_in(dir).unwrap(), free_port());
        let process = run(program, dir.path(), port, link);
        Self { port, process, dir }
    }

    /// The same gateway with another link, after a clean end.
    pub(super) fn start_again(mut self, program: &Program<'_>, link: &str) -> Self {
        self.process.terminate();
        self.process = run(program, self.dir.path(), self.port, link);
        self
    }

    /// `RabbitMQ` with its MQTT plugin, and a shovel that confirms only what the far one has confirmed.
    pub(super) fn plugin_and_shovel(far: u16, dir: &Path) -> Self {
        let dir = tempfile::tempdir_in(dir).unwrap();
        let [port, amqp, epmd, dist] = std::array::from_fn(|_| free_port());
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let conf = file("mqtt.conf", &format!("mqtt.listeners.tcp.1 = 127.0.0.1:{port}\n"));
        file("advanced.config", &shovel(amqp, far));
        let arguments = [
            amqp.to_string(),
            format!("epmd={epmd}"),
            format!("dist={dist}"),
            "plugins=rabbitmq_mqtt,rabbitmq_shovel".to_owned(),
            format!("conf={conf}"),
        ];
        let mut process = Process::peer("rabbitmq", dir.path(), &arguments);
        process.await_ready(|_| accepts(port));
        Self { port, process, dir }
    }

    /// Mosquitto with a bridge at QoS 1.
    pub(super) fn bridge(far: u16, dir: &Path) -> Self {
        let (dir, port) = (tempfile::tempdir_in(dir).unwrap(), free_port());
        let conf = dir.path().join("bridge.conf");
        let text = format!(
            "set_tcp_nodelay true\nconnection far\naddress 127.0.0.1:{far}\ntopic bench/# out 1\nnotifications false\n"
        );
        std::fs::write(&conf, text).unwrap();
        let arguments = [port.to_string(), format!("conf={}", conf.display())];
        let mut process = Process::peer("mosquitto", dir.path(), &arguments);
        process.await_ready(|_| accepts(port));
        Self { port, process, dir }
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Ends it in good order, so that all it has sent is there to be counted.
    pub(super) fn end(mut self) {
        self.process.terminate();
    }
}

fn run(program: &Program<'_>, dir: &Path, port: u16, link: &str) -> Process {
    let (config, data) = (dir.join("routes.yaml"), dir.join("data"));
    let text = format!(
        "site: bench\ndata_dir: {data:?}\nbroker:\n  listeners: [ {{ bind: \"127.0.0.1:{port}\", anonymous: true }} ]\n{link}"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = bound(program.path, |command| command.args(["run", "--config"]).arg(&config));
    command.env("TIDEGATE_LOG", if program.log.is_some() { "info" } else { "error" });
    let log = program.log.clone().unwrap_or_else(|| dir.join("log"));
    let mut process = Process::start(command, &log);
    process.await_ready(|_| accepts(port));
    process
}

/// RabbitMQ's own recipe for what must not be lost.
fn shovel(near: u16, far: u16) -> String {
    format!(
        r#"[{{rabbitmq_shovel, [{{shovels, [{{bench, [
  {{source, [{{protocol, amqp091}}, {{uris, ["amqp://guest:guest@127.0.0.1:{near}"]}},
    {{declarations, [{{'queue.declare', [{{queue, <<"edge">>}}, durable]}},
      {{'queue.bind', [{{exchange, <<"amq.topic">>}}, {{queue, <<"edge">>}}, {{routing_key, <<"bench.#">>}}]}}]}},
    {{queue, <<"edge">>}}, {{prefetch_count, 1000}}]}},
  {{destination, [{{protocol, amqp091}}, {{uris, ["amqp://guest:guest@127.0.0.1:{far}"]}},
    {{publish_properties, [{{delivery_mode, 2}}]}}, {{publish_fields, [{{exchange, <<"bench">>}}]}}]}},
  {{ack_mode, on_confirm}}, {{reconnect_delay, 1}}]}}]}}]}}].
"#
    )
}
