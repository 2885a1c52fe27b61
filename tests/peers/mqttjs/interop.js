// What a broker owes a client, seen by MQTT.js. Argument: URL (mqtt://, ws://). See run.sh.
"use strict";
const assert = require("node:assert/strict");
const mqtt = require("mqtt");

const url = process.argv[2];
const PATIENCE = 20_000;

const inTime = (what, promise) => {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`${what} did not happen in time`)), PATIENCE); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
};

// A client whose messages wait in a list. Nothing here sleeps: every wait is for an event, and has an end.
class Client {
  static async open(version, options = {}) {
    const self = new Client();
    [self.messages, self.waiting] = [[], []];
    self.client = mqtt.connect(url, { protocolVersion: version, reconnectPeriod: 0, connectTimeout: PATIENCE, clean: true, ...options });
    self.client.on("message", (topic, payload, packet) => {
      const message = { topic, payload: payload.toString(), qos: packet.qos, retain: packet.retain, properties: packet.properties };
      const waiter = self.waiting.shift();
      if (waiter) waiter(message); else self.messages.push(message);
    });
    self.connack = await inTime("a connection", new Promise((resolve, reject) => {
      self.client.once("connect", resolve);
      self.client.once("error", reject);
    }));
    return self;
  }
  async subscribe(topic, qos, properties) {
    const granted = await inTime(`SUBACK ${topic}`, this.client.subscribeAsync(topic, { qos, properties }));
    assert.equal(granted[0].qos, qos);
  }
  publish(topic, payload, qos, more = {}) {
    return inTime(`${topic} at QoS ${qos}`, this.client.publishAsync(topic, payload, { qos, ...more }));
  }
  next() {
    const message = this.messages.shift();
    return message ? message : inTime("a message", new Promise((resolve) => this.waiting.push(resolve)));
  }
  async expect(topic, payload, qos, retain) {
    const message = await this.next();
    assert.deepEqual([message.topic, message.payload, message.qos, message.retain], [topic, payload, qos, retain]);
    return message;
  }
  async end() {
    await inTime("its end", this.client.endAsync());
    assert.deepEqual(this.messages, []);
  }
  // Without a word, as a machine that loses its power does.
  vanish() {
    const gone = new Promise((resolve) => this.client.once("close", resolve));
    this.client.stream.destroy();
    return inTime("its close", gone);
  }
}

const checks = {
  async every_qos(version, at) {
    const [one, two] = [await Client.open(version), await Client.open(version)];
    for (const asked of [0, 1, 2]) {
      await two.subscribe(`${at}/${asked}`, asked);
      for (const qos of [0, 1, 2]) {
        await one.publish(`${at}/${asked}`, `at ${qos}`, qos);
        await two.expect(`${at}/${asked}`, `at ${qos}`, Math.min(qos, asked), false);
      }
    }
    await Promise.all([one.end(), two.end()]);
  },
  async large(version, at) {
    const [one, two] = [await Client.open(version), await Client.open(version)];
    await two.subscribe(at, 2);
    for (const size of [1, 125, 126, 65_535, 65_536, 500_000]) {
      const payload = "x".repeat(size);
      await one.publish(at, payload, 2);
      await two.expect(at, payload, 2, false);
    }
    await Promise.all([one.end(), two.end()]);
  },
  async retained(version, at) {
    const [one, two, late] = [await Client.open(version), await Client.open(version), await Client.open(version)];
    await one.publish(`${at}/a`, "kept", 1, { retain: true });
    await two.subscribe(`${at}/#`, 1);
    await two.expect(`${at}/a`, "kept", 1, true);
    await one.publish(`${at}/a`, "newer", 2, { retain: true });
    await two.expect(`${at}/a`, "newer", 1, false);
    await one.publish(`${at}/a`, "", 1, { retain: true });
    await two.expect(`${at}/a`, "", 1, false);
    await late.subscribe(`${at}/#`, 1);
    await Promise.all([one.end(), two.end(), late.end()]);
  },
  async will(version, at) {
    const watcher = await Client.open(version);
    await watcher.subscribe(`${at}/#`, 1);
    const will = (name) => ({ will: { topic: `${at}/${name}`, payload: Buffer.from("gone"), qos: 1, retain: false } });
    await (await Client.open(version, will("orderly"))).end();
    await (await Client.open(version, will("lost"))).vanish();
    await watcher.expect(`${at}/lost`, "gone", 1, false);
    await watcher.end();
  },
  async kept_session(version, at) {
    const keep = { clientId: at.replaceAll("/", "-"), clean: false, properties: version === 5 ? { sessionExpiryInterval: 600 } : undefined };
    const one = await Client.open(version);
    let two = await Client.open(version, keep);
    assert.equal(two.connack.sessionPresent, false);
    await two.subscribe(`${at}/#`, 2);
    await two.end();
    for (const qos of [1, 2]) await one.publish(`${at}/a`, `at ${qos}`, qos);
    two = await Client.open(version, keep);
    assert.equal(two.connack.sessionPresent, true);
    const got = [await two.next(), await two.next()].sort((a, b) => a.qos - b.qos);
    assert.deepEqual(got.map((message) => [message.payload, message.qos]), [["at 1", 1], ["at 2", 2]]);
    await two.end();
    await (await Client.open(version, { ...keep, clean: true, properties: undefined })).end();
    two = await Client.open(version, keep);
    assert.equal(two.connack.sessionPresent, false);
    await Promise.all([one.end(), two.end()]);
  },
  async properties(version, at) {
    const [one, two] = [await Client.open(version, { clientId: "" }), await Client.open(version)];
    assert.ok(one.connack.properties.assignedClientIdentifier);
    await two.subscribe(at, 1, { subscriptionIdentifier: 77 });
    const sent = {
      contentType: "text/plain", responseTopic: "answers/here", correlationData: Buffer.from([0, 1, 255]),
      payloadFormatIndicator: true, messageExpiryInterval: 600, userProperties: { b: ["1", "3"], a: "2" },
    };
    await one.publish(at, "with all", 1, { properties: sent });
    const { properties: got } = await two.expect(at, "with all", 1, false);
    assert.deepEqual([got.contentType, got.responseTopic, [...got.correlationData]], ["text/plain", "answers/here", [0, 1, 255]]);
    assert.ok(got.payloadFormatIndicator && got.messageExpiryInterval > 590 && got.messageExpiryInterval <= 600);
    assert.deepEqual({ ...got.userProperties }, { b: ["1", "3"], a: "2" });
    assert.equal(got.subscriptionIdentifier, 77);
    await Promise.all([one.end(), two.end()]);
  },
};

(async () => {
  for (const [label, version] of [["3.1.1", 4], ["5.0", 5]]) {
    for (const [name, check] of Object.entries(checks)) {
      if (name === "properties" && version !== 5) continue;
      await check(version, `mqttjs/${new URL(url).protocol.slice(0, -1)}/${label}/${name}`);
      console.log("ok", label, name);
    }
  }
  process.exit(0);
})().catch((error) => { console.error(error); process.exit(1); });
