// Calls the gateway over the types that openapi-typescript makes of openapi/, and prints what it saw as one JSON object.
// Arguments: the gateway's URL, an API key, and the URL of a webhook receiver.
import createClient from "openapi-fetch";
import type { paths as Reachability } from "./device-reachability-status-v1.js";
import type { paths as ReachabilitySubscriptions } from "./device-reachability-status-subscriptions-v0.8.js";
import type { components, paths } from "./terminal-status-v1.js";

declare const process: { argv: string[] };
const [gateway = "", key = "", receiver = ""] = process.argv.slice(2);
const headers = { Authorization: `Bearer ${key}` };
const alice = "sip:alice@example.com";
const dave = "sip:dave@example.com";
const v1 = createClient<paths, "application/json" | "application/problem+json">({ baseUrl: gateway, headers });
const streams = createClient<paths, "text/event-stream">({ baseUrl: gateway, headers });

function given<T>(answered: { data?: T; error?: unknown }): T {
  if (answered.data === undefined) throw new Error(JSON.stringify(answered.error));
  return answered.data;
}

function uriOf(sink: components["schemas"]["Subscription"]["sink"]): string {
  switch (sink.kind) {
    case "LISTED":
      return "";
    case "WEBHOOK":
    case "CAMARA":
    case "SOAP":
      return sink.uri;
  }
}

const status = given(await v1.GET("/v1/terminals/{address}/status", { params: { path: { address: alice } } }));
const unknown = await v1.GET("/v1/terminals/{address}/status", { params: { path: { address: dave } } });
const found = given(await v1.POST("/v1/terminals:query", { body: { addresses: [alice, dave] } }));

const query = { address: [alice] };
const stream = given(await streams.GET("/v1/terminals:watch", { params: { query }, parseAs: "stream" }));
if (stream === null) throw new Error("The stream has no body.");
const reader = stream.getReader();
const decoder = new TextDecoder();
let read = "";
while (!read.includes("event: snapshot-complete")) {
  const { value, done } = await reader.read();
  if (done) break;
  read += decoder.decode(value, { stream: true });
}
await reader.cancel();

const made = given(
  await v1.POST("/v1/subscriptions", {
    body: { addresses: [alice], criteria: ["BUSY"], sink: { kind: "WEBHOOK", uri: receiver, handshake: "NONE" } },
  }),
);
const path = { subscription_id: made.id };
const rotated = given(await v1.POST("/v1/subscriptions/{subscription_id}:rotateSecret", { params: { path } }));
const listed = given(await v1.GET("/v1/subscriptions")).subscriptions;
await v1.DELETE("/v1/subscriptions/{subscription_id}", { params: { path } });
const ended = given(await v1.GET("/v1/subscriptions/{subscription_id}", { params: { path } }));

const camara = createClient<Reachability>({ baseUrl: `${gateway}/device-reachability-status/v1`, headers });
const reachable = given(
  await camara.POST("/retrieve", { body: { device: { networkAccessIdentifier: "alice@example.com" } } }),
);
const events = createClient<ReachabilitySubscriptions>({
  baseUrl: `${gateway}/device-reachability-status-subscriptions/v0.8`,
  headers,
});
const subscriptions = given(await events.GET("/subscriptions"));

console.log(
  JSON.stringify({
    status: [status.status, status.source, status.observe_time !== ""],
    error: [unknown.response.status, unknown.error?.code],
    query: found.results.map((each) => [each.address, each.status?.status ?? each.error?.code]).sort(),
    stream: [...read.matchAll(/^event: (.*)$/gm)].map((each) => each[1]),
    subscription: [listed.map((each) => each.id).includes(made.id), uriOf(made.sink) === receiver, made.criteria],
    secrets: [made.secret?.startsWith("whsec_"), rotated.secret !== made.secret],
    ended: [ended.end_reason, ended.end_time !== null],
    camara: [reachable.reachable, reachable.connectivity, subscriptions],
  }),
);
