// What the gateway does on the wire for @grpc/grpc-js. Arguments and output: see test_generated_clients.py.
import {
  type ClientReadableStream,
  connectivityState,
  credentials,
  Metadata,
  type ServiceError,
  status,
} from "@grpc/grpc-js";

import { ErrorInfo } from "./google/rpc/error_details";
import { Status as RpcStatus } from "./google/rpc/status";
import {
  GetStatusRequest,
  type GetStatusResponse,
  statusToJSON,
  TerminalStatusServiceClient,
  WatchStatusesRequest,
  type WatchStatusesResponse,
} from "./terminalstatus/v1/terminal_status";

const ALICE = "sip:alice@example.com";
const GZIP = 2;
const [address, closedAddress] = process.argv.slice(2, 4) as [string, string];
const keepaliveMs = Number(process.argv[4]);

const connect = (options: object = {}, to = address) =>
  new TerminalStatusServiceClient(to, credentials.createInsecure(), options);

/** The status of a terminal; of a failed call its code, and the reason if the error has details. */
function ask(
  client: TerminalStatusServiceClient,
  terminal: string,
  { limitMs = 20_000, metadata = new Metadata() } = {},
): Promise<string[]> {
  return new Promise((resolve) => {
    const answered = (error: ServiceError | null, answer?: GetStatusResponse) => {
      if (!error) return resolve([answer?.status ? statusToJSON(answer.status.status) : ""]);
      const [packed] = error.metadata.get("grpc-status-details-bin");
      const details = packed ? RpcStatus.decode(packed as Buffer).details : [];
      const info = details.find((detail) => detail.typeUrl === "type.googleapis.com/google.rpc.ErrorInfo");
      resolve([status[error.code] ?? "", ...(info ? [ErrorInfo.decode(info.value).reason] : [])]);
    };
    const options = { deadline: Date.now() + limitMs };
    client.getStatus(GetStatusRequest.fromPartial({ address: terminal }), metadata, options, answered);
  });
}

function watch(client: TerminalStatusServiceClient, limitMs = 20_000): ClientReadableStream<WatchStatusesResponse> {
  const request = WatchStatusesRequest.fromPartial({ addresses: [ALICE] });
  return client.watchStatuses(request, { deadline: Date.now() + limitMs });
}

/** Resolves when the snapshot is complete. The stream then goes on. */
function snapshot(stream: ClientReadableStream<WatchStatusesResponse>): Promise<void> {
  return new Promise((resolve) => {
    stream.on("data", ({ event }: WatchStatusesResponse) => event?.$case === "snapshotComplete" && resolve());
  });
}

/** The code with which a stream ends. */
function ended(stream: ClientReadableStream<WatchStatusesResponse>): Promise<string> {
  return new Promise((resolve) => {
    stream.on("error", ({ code }: ServiceError) => resolve(status[code] ?? ""));
    stream.on("end", () => resolve("OK"));
  });
}

/** Whether a connection that pings all the time, at first without calls, is kept for 12 pings. */
async function kept(): Promise<boolean> {
  const client = connect({ "grpc.keepalive_time_ms": keepaliveMs, "grpc.keepalive_permit_without_calls": 1 });
  await ask(client, ALICE);
  const changed = await new Promise<boolean>((resolve) => {
    const until = Date.now() + 12 * keepaliveMs;
    client.getChannel().watchConnectivityState(connectivityState.READY, until, (error) => resolve(!error));
  });
  client.close();
  return !changed;
}

async function main(): Promise<void> {
  const client = connect();
  const closed = connect({}, closedAddress);
  const compressing = connect({ "grpc.default_compression_algorithm": GZIP });
  const seen: Record<string, unknown> = {};
  const keeping = kept();
  seen["unary"] = await ask(client, ALICE);
  seen["deadline"] = await ask(client, "sip:silent@example.com", { limitMs: 300 });

  const short = watch(client, 300);
  const [, shortEnd] = await Promise.all([snapshot(short), ended(short)]);
  seen["stream_deadline"] = shortEnd;

  const cancelled = watch(client);
  const end = ended(cancelled);
  await snapshot(cancelled);
  cancelled.cancel();
  seen["cancel"] = await end;

  seen["large"] = await ask(client, "a".repeat(1024 * 1024 - 100));
  seen["too_large"] = await ask(client, "a".repeat(1024 * 1024 + 1));
  seen["gzip"] = await ask(compressing, ALICE);
  seen["gzip_large"] = await ask(compressing, "a".repeat(1024 * 1024 - 100));
  seen["gzip_too_large"] = await ask(compressing, "a".repeat(1024 * 1024 + 1));

  const metadata = new Metadata();
  metadata.set("authorization", "Bearer tsk_a_b");
  seen["credentials"] = await ask(closed, ALICE, { metadata });

  const streams = Array.from({ length: 2000 }, () => watch(client));
  const ends = streams.map(ended);
  await Promise.all(streams.map(snapshot));
  for (const stream of streams) stream.cancel();
  seen["streams"] = (await Promise.all(ends)).filter((code) => code === "CANCELLED").length;
  seen["after"] = await ask(client, ALICE);
  seen["kept"] = await keeping;
  console.log(JSON.stringify(seen));
  for (const each of [client, closed, compressing]) each.close();
}

void main();
