//! MQTT clients by an independent library (rumqttc): publishers that know exactly what was acknowledged to them, and a
//! subscriber with a kept session.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rumqttc_v5::{
    AsyncClient, BrokerSessionResumePolicy, Event, EventLoop, Incoming, MqttOptions, PublishNotice, PublishNoticeError,
    PublishOptions, PublishProperties, QoS, SessionMode,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::gateway::Gateway;
use super::ledger::{Delivery, Mark};
use super::wait::{PATIENCE, until};

/// How long a client waits after a failed connection.
const RETRY: Duration = Duration::from_millis(50);

/// Bytes of a payload.
const LENGTH: usize = 64;

/// Who publishes what.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) port: u16,
    pub(crate) publishers: usize,
    /// In all.
    pub(crate) messages: usize,
    pub(crate) qos: QoS,
    /// Unacknowledged at most, for each publisher.
    pub(crate) window: usize,
    /// Of publisher `n`: `topic/n`; its client id is `topic-n`.
    pub(crate) topic: String,
}

/// Publishers at work. Each publishes its share in order, and what was not acknowledged again, in order, until all is.
#[derive(Debug)]
pub(crate) struct Publishers {
    tasks: JoinSet<()>,
    progress: Progress,
    work: Work,
}

/// Shared by the publishers and their test.
#[derive(Clone, Debug)]
struct Progress {
    /// How many of its messages each publisher may publish by now.
    share: watch::Sender<usize>,
    acknowledged: Arc<AtomicUsize>,
}

impl Publishers {
    /// They publish nothing before [`Publishers::allow`].
    pub(crate) fn start(work: Work) -> Self {
        let progress = Progress { share: watch::Sender::new(0), acknowledged: Arc::default() };
        let mut tasks = JoinSet::new();
        for publisher in 0..work.publishers {
            tasks.spawn(publish(work.clone(), publisher, progress.clone()));
        }
        Self { tasks, progress, work }
    }

    /// Lets them publish up to so many messages in all.
    pub(crate) fn allow(&self, messages: usize) {
        self.progress.share.send_replace(messages / self.work.publishers);
    }

    /// How many acknowledgements came in, over all publishers.
    pub(crate) fn acknowledged(&self) -> usize {
        self.progress.acknowledged.load(Ordering::Relaxed)
    }

    /// Returns when so many were acknowledged.
    pub(crate) async fn reach(&self, count: usize) {
        let what = format!("{count} publishes acknowledged");
        until(&what, PATIENCE, async || {
            let now = self.acknowledged();
            if now >= count { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
    }

    /// Returns when all were acknowledged, with the account of it.
    pub(crate) async fn finish(mut self) -> Vec<Mark> {
        self.allow(self.work.messages);
        self.reach(self.work.messages).await;
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        all_marks(&self.work)
    }
}

/// The marks of all that `work` publishes.
fn all_marks(work: &Work) -> Vec<Mark> {
    let share = work.messages / work.publishers;
    (0..work.publishers).flat_map(|publisher| (0..share).map(move |number| Mark { publisher, number })).collect()
}

/// One publisher, over as many connections as it takes. Each is a new client with a clean session: what is sent again is our decision,
/// not the library's.
async fn publish(work: Work, publisher: usize, progress: Progress) {
    let share = work.messages / work.publishers;
    let mut open: Vec<usize> = (0..share).collect();
    let mut retry = interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !open.is_empty() {
        retry.tick().await;
        let mut options = MqttOptions::new(format!("{}-{publisher}", work.topic), ("127.0.0.1", work.port));
        options.set_keep_alive(30).set_max_request_batch(64);
        let (client, events) = AsyncClient::builder(options).capacity(work.window).build();
        let mut polling = JoinSet::new();
        let over = CancellationToken::new();
        polling.spawn(poll_once_connected(events, over.clone().drop_guard()));
        let done = publish_in_order(&client, &over, &work, publisher, &open, &progress).await;
        open.retain(|number| !done.contains(number));
        if open.is_empty() {
            // The library's own good-bye; the loop ends with it.
            drop(client.disconnect().await);
            polling.join_next().await;
        }
    }
}

/// Publishes with a window until all is acknowledged or the connection fails; returns what was acknowledged.
async fn publish_in_order(
    client: &AsyncClient,
    over: &CancellationToken,
    work: &Work,
    publisher: usize,
    open: &[usize],
    progress: &Progress,
) -> BTreeSet<usize> {
    let mut share = progress.share.subscribe();
    let mut done = BTreeSet::new();
    let mut window: VecDeque<(usize, PublishNotice)> = VecDeque::new();
    let mut rest = open.iter().copied().peekable();
    let mut broken = false;
    loop {
        let may = rest.peek().is_some_and(|number| number < &*share.borrow_and_update());
        if !broken && may && window.len() < work.window {
            let number = rest.next().unwrap();
            match send(client, work, publisher, number).await {
                Some(notice) => window.push_back((number, notice)),
                None => broken = true,
            }
        } else if let Some((number, notice)) = window.pop_front() {
            // A notice that is still in the client's queue when the connection ends would never settle.
            let answer = tokio::select! {
                biased;
                answer = notice.wait_completion_async() => answer.is_ok(),
                () = over.cancelled() => false,
            };
            if answer {
                done.insert(number);
                progress.acknowledged.fetch_add(1, Ordering::Relaxed);
            } else {
                broken = true;
            }
        } else if broken || rest.peek().is_none() {
            return done;
        } else {
            tokio::select! {
                changed = share.changed() => changed.unwrap(),
                () = over.cancelled() => broken = true,
            }
        }
    }
}

async fn send(client: &AsyncClient, work: &Work, publisher: usize, number: usize) -> Option<PublishNotice> {
    let topic = format!("{}/{publisher}", work.topic);
    let payload = Mark { publisher, number }.payload(LENGTH);
    let properties = PublishProperties {
        content_type: Some("text/plain".into()),
        user_properties: vec![("number".into(), number.to_string())],
        ..PublishProperties::default()
    };
    let options = PublishOptions::new(work.qos).properties(properties);
    client.publish_tracked(topic, payload, options).await.ok()
}

/// One QoS 1 publish by a client of its own; what the broker answers to it.
pub(crate) async fn publish_once(
    port: u16,
    client_id: &str,
    topic: &str,
    payload: Vec<u8>,
) -> Result<(), PublishNoticeError> {
    let options = MqttOptions::new(client_id, ("127.0.0.1", port));
    let (client, events) = AsyncClient::builder(options).capacity(1).build();
    let mut polling = JoinSet::new();
    polling.spawn(poll_once_connected(events, CancellationToken::new().drop_guard()));
    let notice = client.publish_tracked(topic, payload, PublishOptions::new(QoS::AtLeastOnce)).await;
    let answer = notice.expect("an empty queue takes it").wait_completion_async();
    timeout(PATIENCE, answer).await.expect("the broker answers")
}

/// Runs one connection to its end, and says so.
async fn poll_once_connected(mut events: EventLoop, over: DropGuard) {
    while events.poll().await.is_ok() {}
    // What was acknowledged is known before the end is.
    drop(events);
    drop(over);
}

/// A QoS 2 publisher with a kept session: one client whose own state lives on over reconnects, as exactly-once needs it.
pub(crate) async fn publish_exactly_once(work: Work, acknowledged: Arc<AtomicUsize>) -> Vec<Mark> {
    let mut options = MqttOptions::new("exactly-once", ("127.0.0.1", work.port));
    options.set_keep_alive(30).set_session_mode(SessionMode::Persistent).set_session_expiry_interval(Some(3_600));
    options.set_max_request_batch(16);
    let (client, events) = AsyncClient::builder(options).capacity(work.window).build();
    let mut polling = JoinSet::new();
    polling.spawn(poll_for_ever(events, None));
    let mut window = VecDeque::new();
    for number in 0..work.messages {
        if window.len() == work.window {
            completed(window.pop_front(), &acknowledged).await;
        }
        window.push_back(send(&client, &work, 0, number).await.expect("the client's own queue takes it"));
    }
    while !window.is_empty() {
        completed(window.pop_front(), &acknowledged).await;
    }
    all_marks(&work)
}

async fn completed(notice: Option<PublishNotice>, acknowledged: &AtomicUsize) {
    notice.unwrap().wait_completion_async().await.expect("a kept QoS 2 exchange completes");
    acknowledged.fetch_add(1, Ordering::Relaxed);
}

/// Polls over as many connections as it takes. A new session is subscribed anew.
async fn poll_for_ever(mut events: EventLoop, mut subscriber: Option<Inbox>) {
    let mut retry = interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        match events.poll().await {
            Ok(Event::Incoming(packet)) => {
                if let Some(inbox) = &mut subscriber {
                    inbox.take(packet).await;
                }
            }
            Ok(_) => {}
            Err(_) => {
                retry.tick().await;
            }
        }
    }
}

/// A subscriber with a kept session that comes back by itself. Acknowledges what it has stored.
#[derive(Debug)]
pub(crate) struct Subscriber {
    arrived: Arc<Mutex<Vec<Delivery>>>,
    sessions: Arc<AtomicUsize>,
    _polling: JoinSet<()>,
}

#[derive(Debug)]
struct Inbox {
    client: AsyncClient,
    filter: String,
    qos: QoS,
    arrived: Arc<Mutex<Vec<Delivery>>>,
    sessions: Arc<AtomicUsize>,
}

impl Subscriber {
    /// Returns when the broker has confirmed the subscription.
    pub(crate) async fn start(port: u16, client_id: &str, filter: &str, qos: QoS) -> Self {
        let mut options = MqttOptions::new(client_id, ("127.0.0.1", port));
        options.set_keep_alive(30).set_session_mode(SessionMode::Persistent).set_session_expiry_interval(Some(3_600));
        options.set_broker_session_resume_policy(BrokerSessionResumePolicy::AllowBrokerOnly);
        options.set_receive_maximum(Some(256)).set_max_request_batch(64);
        let (client, events) = AsyncClient::builder(options).capacity(64).build();
        let (arrived, sessions) = (Arc::default(), Arc::default());
        let inbox = Inbox {
            client,
            filter: filter.into(),
            qos,
            arrived: Arc::clone(&arrived),
            sessions: Arc::clone(&sessions),
        };
        let mut polling = JoinSet::new();
        polling.spawn(poll_for_ever(events, Some(inbox)));
        let subscriber = Self { arrived, sessions, _polling: polling };
        let what = format!("{client_id} is subscribed to {filter}");
        until(&what, PATIENCE, async || if subscriber.sessions() > 0 { Ok(()) } else { Err("no SUBACK".into()) }).await;
        subscriber
    }

    /// A gateway, and its client `machine`, which is subscribed before the links and routes of `rest` are there: what a source reads at once
    /// has somebody to go to.
    pub(crate) async fn before(rest: &str, filter: &str) -> (Gateway, Self) {
        let gateway = Gateway::start("").await;
        let machine = Self::start(gateway.port, "machine", filter, QoS::AtLeastOnce).await;
        gateway.configure(rest);
        gateway.hang_up();
        (gateway, machine)
    }

    /// Subscriptions made: more than one if the broker forgot the session.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self) -> usize {
        self.arrived.lock().len()
    }

    pub(crate) fn arrived(&self) -> Vec<Delivery> {
        self.arrived.lock().clone()
    }

    /// Returns when every one of these has arrived, with all that did.
    pub(crate) async fn receive(&self, marks: &[Mark]) -> Vec<Delivery> {
        let what = format!("{} messages arrive", marks.len());
        until(&what, PATIENCE, async || {
            let arrived = self.arrived.lock();
            let missing = missing(marks, &arrived);
            if missing == 0 { Ok(()) } else { Err(format!("{missing} missing of {}", marks.len())) }
        })
        .await;
        self.arrived()
    }
}

/// How many of `marks` are not among `arrived`.
fn missing(marks: &[Mark], arrived: &[Delivery]) -> usize {
    if arrived.len() < marks.len() {
        return marks.len() - arrived.len();
    }
    let there: BTreeSet<Mark> = arrived.iter().map(Delivery::mark).collect();
    marks.iter().filter(|mark| !there.contains(mark)).count()
}

impl Inbox {
    async fn take(&mut self, packet: Incoming) {
        if let Incoming::ConnAck(connack) = &packet
            && !connack.session_present
        {
            self.client.subscribe(self.filter.as_str(), self.qos).await.unwrap();
        }
        if let Incoming::SubAck(_) = &packet {
            self.sessions.fetch_add(1, Ordering::Relaxed);
        }
        if let Incoming::Publish(publish) = packet {
            let properties = publish.properties.unwrap_or_default();
            self.arrived.lock().push(Delivery {
                topic: String::from_utf8(publish.topic.to_vec()).unwrap(),
                payload: publish.payload.to_vec(),
                properties: properties.user_properties.into_iter().collect::<BTreeMap<_, _>>(),
                content_type: properties.content_type,
                key: None,
            });
        }
    }
}
