"""What a broker owes a client, seen by Eclipse Paho's Python client. Arguments: port, tcp or websockets. See run.sh."""

import queue
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

PORT, TRANSPORT = int(sys.argv[1]), sys.argv[2]
PATIENCE = 20
VERSIONS = {"3.1.1": mqtt.MQTTv311, "5.0": mqtt.MQTTv5}


class Client:
    """A client whose callbacks end in queues. Nothing here sleeps: every wait is for an event, and has an end."""

    def __init__(self, version, name="", clean=True, expiry=0, will=None, user=None):
        self.version, self.five = version, version == mqtt.MQTTv5
        more = {} if self.five else {"clean_session": clean}
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=version, transport=TRANSPORT, **more
        )
        self.connected, self.messages, self.acks = queue.Queue(), queue.Queue(), queue.Queue()
        self.client.on_connect = lambda c, u, flags, code, props: self.connected.put((flags, code, props))
        self.client.on_message = lambda c, u, message: self.messages.put(message)
        self.client.on_subscribe = lambda c, u, mid, codes, props: self.acks.put((mid, codes))
        self.client.on_publish = lambda c, u, mid, code, props: self.acks.put((mid, code))
        if will:
            self.client.will_set(*will)
        properties = None
        if self.five:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = expiry
        more = {"clean_start": clean, "properties": properties} if self.five else {}
        if TRANSPORT == "websockets":
            self.client.ws_set_options(path="/mqtt")
        self.client.connect("127.0.0.1", PORT, keepalive=60, **more)
        self.client.loop_start()
        self.flags, code, self.granted = self.connected.get(timeout=PATIENCE)
        assert not code.is_failure, code

    def subscribe(self, topic, qos, identifier=None):
        properties = None
        if identifier:
            properties = Properties(PacketTypes.SUBSCRIBE)
            properties.SubscriptionIdentifier = identifier
        if self.five:
            _, mid = self.client.subscribe(topic, options=SubscribeOptions(qos=qos), properties=properties)
        else:
            _, mid = self.client.subscribe(topic, qos)
        acked, codes = self.acks.get(timeout=PATIENCE)
        assert acked == mid and codes[0].value == qos, (acked, mid, codes)

    def publish(self, topic, payload, qos, retain=False, properties=None):
        info = self.client.publish(topic, payload, qos, retain, properties=properties)
        info.wait_for_publish(PATIENCE)
        assert info.is_published(), (topic, qos)
        mid, code = self.acks.get(timeout=PATIENCE)
        # 0x10: nobody has subscribed to it.
        assert mid == info.mid and code.value in (0, 0x10), (mid, code)

    def next(self):
        return self.messages.get(timeout=PATIENCE)

    def expect(self, *wanted):
        message = self.next()
        got = (message.topic, message.payload.decode(), message.qos, message.retain)
        assert got == wanted, (got, wanted)
        return message

    def end(self):
        """In order: nothing that comes later is this client's."""
        over = threading.Event()
        self.client.on_disconnect = lambda *_: over.set()
        self.client.disconnect()
        assert over.wait(PATIENCE)
        self.client.loop_stop()
        assert self.messages.empty(), self.messages.get()

    def vanish(self):
        """Without a word, as a machine that loses its power does."""
        self.client._sock_close()
        self.client.loop_stop()


def every_qos(version, at):
    one, two = Client(version), Client(version)
    for asked in (0, 1, 2):
        topic = f"{at}/{asked}"
        two.subscribe(topic, asked)
        for qos in (0, 1, 2):
            one.publish(topic, f"at {qos}", qos)
            two.expect(topic, f"at {qos}", min(qos, asked), False)
    one.end()
    two.end()


def many_in_order(version, at):
    one, two = Client(version), Client(version)
    two.subscribe(f"{at}/#", 2)
    # Beyond 20 that are under way paho keeps messages back, and does not always let them go in order.
    for part in range(0, 300, 20):
        numbers = range(part, part + 20)
        for info in [one.client.publish(f"{at}/{number % 3}", str(number), number % 3) for number in numbers]:
            info.wait_for_publish(PATIENCE)
    got = [two.next() for _ in range(300)]
    for topic in range(3):
        numbers = [int(message.payload) for message in got if message.topic == f"{at}/{topic}"]
        assert numbers == list(range(topic, 300, 3)), numbers
    one.acks = queue.Queue()
    one.end()
    two.end()


def retained(version, at):
    one = Client(version)
    one.publish(f"{at}/a", "kept", 1, True)
    two = Client(version)
    two.subscribe(f"{at}/#", 1)
    two.expect(f"{at}/a", "kept", 1, True)
    one.publish(f"{at}/a", "newer", 2, True)
    two.expect(f"{at}/a", "newer", 1, False)
    one.publish(f"{at}/a", "", 1, True)
    two.expect(f"{at}/a", "", 1, False)
    late = Client(version)
    late.subscribe(f"{at}/#", 1)
    for client in (one, two, late):
        client.end()


def will(version, at):
    watcher = Client(version)
    watcher.subscribe(f"{at}/#", 1)
    Client(version, will=(f"{at}/orderly", "gone", 1)).end()
    Client(version, will=(f"{at}/lost", "gone", 1)).vanish()
    watcher.expect(f"{at}/lost", "gone", 1, False)
    watcher.end()


def kept_session(version, at):
    name, one = at.replace("/", "-"), Client(version)
    two = Client(version, name, clean=False, expiry=600)
    assert not two.flags.session_present
    two.subscribe(f"{at}/#", 2)
    two.end()
    for qos in (1, 2):
        one.publish(f"{at}/a", f"at {qos}", qos)
    two = Client(version, name, clean=False, expiry=600)
    assert two.flags.session_present
    got = sorted((two.next() for _ in range(2)), key=lambda message: message.qos)
    assert [(message.payload, message.qos) for message in got] == [(b"at 1", 1), (b"at 2", 2)]
    two.end()
    Client(version, name, clean=True).end()
    two = Client(version, name, clean=False, expiry=600)
    assert not two.flags.session_present
    two.end()
    one.end()


def properties(version, at):
    one, two = Client(version), Client(version)
    assert one.granted.AssignedClientIdentifier
    two.subscribe(f"{at}/a", 1, identifier=77)
    sent = Properties(PacketTypes.PUBLISH)
    sent.ContentType, sent.ResponseTopic, sent.CorrelationData = "text/plain", "answers/here", b"\x00\x01\xff"
    sent.PayloadFormatIndicator, sent.MessageExpiryInterval = 1, 600
    sent.UserProperty = [("b", "1"), ("a", "2"), ("b", "3")]
    one.publish(f"{at}/a", "with all", 1, properties=sent)
    got = two.expect(f"{at}/a", "with all", 1, False).properties
    assert (got.ContentType, got.ResponseTopic, got.CorrelationData) == ("text/plain", "answers/here", b"\x00\x01\xff")
    assert got.PayloadFormatIndicator == 1 and 590 < got.MessageExpiryInterval <= 600
    assert got.UserProperty == [("b", "1"), ("a", "2"), ("b", "3")], got.UserProperty
    assert got.SubscriptionIdentifier == [77]
    alias = Properties(PacketTypes.PUBLISH)
    alias.TopicAlias = 3
    one.publish(f"{at}/a", "sets an alias", 1, properties=alias)
    two.expect(f"{at}/a", "sets an alias", 1, False)
    one.publish("", "uses it", 1, properties=alias)
    two.expect(f"{at}/a", "uses it", 1, False)
    one.end()
    two.end()


CHECKS = [every_qos, many_in_order, retained, will, kept_session]
for label, version in VERSIONS.items():
    for check in CHECKS + ([properties] if version == mqtt.MQTTv5 else []):
        check(version, f"paho/{TRANSPORT}/{label}/{check.__name__}")
        print("ok", label, check.__name__, flush=True)
