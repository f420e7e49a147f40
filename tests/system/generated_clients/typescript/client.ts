// The gateway's client in TypeScript, over the code that ts-proto makes for @grpc/grpc-js. Arguments and output: see
// test_generated_clients.py.
import {
  type ClientReadableStream,
  type ClientUnaryCall,
  credentials,
  Metadata,
  type ServiceError,
  status,
} from "@grpc/grpc-js";

import type { Any } from "./google/protobuf/any";
import { ErrorInfo } from "./google/rpc/error_details";
import { Status as RpcStatus } from "./google/rpc/status";
import { SubscriptionServiceClient } from "./terminalstatus/v1/subscription";
import {
  type FollowStatusesResponse,
  GetStatusRequest,
  type GetStatusResponse,
  QueryStatusesRequest,
  type QueryStatusesResponse,
  RetrievalStatus,
  sourceToJSON,
  Status,
  statusToJSON,
  TerminalStatusServiceClient,
  WatchStatusesRequest,
  type WatchStatusesResponse,
} from "./terminalstatus/v1/terminal_status";

const [ALICE, BOB, DAVE] = ["alice", "bob", "dave"].map((name) => `sip:${name}@example.com`) as [string, string, string];
const address = process.argv[2] as string;
const terminals = new TerminalStatusServiceClient(address, credentials.createInsecure());
const subscriptions = new SubscriptionServiceClient(address, credentials.createInsecure());
const options = () => ({ deadline: Date.now() + 20_000 });

type Unary<Request, Response> = (
  request: Request,
  metadata: Metadata,
  options: object,
  callback: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

function call<Request, Response>(method: Unary<Request, Response>, request: Request): Promise<Response> {
  return new Promise((resolve, reject) => {
    method(request, new Metadata(), options(), (error, response) => (error ? reject(error) : resolve(response)));
  });
}

function infoOf(details: Any[]): ErrorInfo {
  const packed = details.find((detail) => detail.typeUrl === "type.googleapis.com/google.rpc.ErrorInfo");
  if (packed === undefined) throw new Error("no ErrorInfo");
  return ErrorInfo.decode(packed.value);
}

const sorted = (values: Map<string, string>) => [...values].sort();

/** Replaces Alice by Bob on an open stream. */
async function swap(): Promise<Map<string, string>> {
  const followed = new Map<string, string>();
  const stream = terminals.followStatuses(options());
  const change = { changeId: "swap", addAddresses: [BOB], removeAddresses: [ALICE] };
  stream.write({ request: { $case: "open", open: WatchStatusesRequest.fromPartial({ addresses: [ALICE] }) } });
  let sent = false;
  for await (const message of stream) {
    const { event } = message as FollowStatusesResponse;
    if (event?.$case === "changeApplied") {
      if (!event.changeApplied.error) followed.set(event.changeApplied.changeId, "applied");
      break;
    }
    const inner = event?.statusEvent.event;
    switch (inner?.$case) {
      case "snapshotComplete":
        stream.write({ request: { $case: "change", change } });
        sent = true;
        break;
      case "snapshotItem":
        if (sent) followed.set(inner.snapshotItem.address, "added");
        break;
      case "terminalRemoved":
        followed.set(inner.terminalRemoved.address, "removed");
        break;
    }
  }
  stream.end();
  return followed;
}

async function main(): Promise<void> {
  const seen: Record<string, unknown> = {};
  const getStatus: Unary<GetStatusRequest, GetStatusResponse> = terminals.getStatus.bind(terminals);

  const { status: alice } = await call(getStatus, GetStatusRequest.fromPartial({ address: ALICE }));
  seen["status"] = alice && statusToJSON(alice.status);
  seen["source"] = alice && sourceToJSON(alice.source);
  seen["observed"] = (alice?.observeTime?.getTime() ?? 0) > 0;

  try {
    await call(getStatus, GetStatusRequest.fromPartial({ address: DAVE }));
  } catch (caught) {
    const error = caught as ServiceError;
    const [packed] = error.metadata.get("grpc-status-details-bin");
    const info = infoOf(RpcStatus.decode(packed as Buffer).details);
    const code = (status[error.code] ?? "")
      .split("_")
      .map((word) => word[0] + word.slice(1).toLowerCase())
      .join("");
    seen["error"] = [code, info.reason, info.domain, info.metadata["address"]];
  }

  const results = new Map<string, string>();
  const query: ClientReadableStream<QueryStatusesResponse> = terminals.queryStatuses(
    QueryStatusesRequest.fromPartial({ addresses: [ALICE, DAVE] }),
    options(),
  );
  for await (const message of query) {
    const { result } = message as QueryStatusesResponse;
    if (result?.retrievalStatus === RetrievalStatus.RETRIEVAL_STATUS_RETRIEVED) {
      results.set(result.address, result.status ? statusToJSON(result.status.status) : "");
    } else if (result?.error) {
      results.set(result.address, infoOf(result.error.details).reason);
    }
  }
  seen["query"] = sorted(results);

  const snapshot = new Map<string, string>();
  let complete = false;
  const stream: ClientReadableStream<WatchStatusesResponse> = terminals.watchStatuses(
    WatchStatusesRequest.fromPartial({ addresses: [ALICE, BOB] }),
    options(),
  );
  stream.on("error", (error: ServiceError) => {
    if (error.code !== status.CANCELLED) throw error;
  });
  await new Promise<void>((resolve) => {
    stream.on("data", ({ event }: WatchStatusesResponse) => {
      switch (event?.$case) {
        case "snapshotItem":
          if (event.snapshotItem.status) {
            snapshot.set(event.snapshotItem.address, statusToJSON(event.snapshotItem.status.status));
          }
          break;
        case "change":
          if (event.change.status) snapshot.set(event.change.status.address, statusToJSON(event.change.status.status));
          break;
        case "snapshotComplete":
          complete = true;
          seen["bookmarks"] = (event.snapshotComplete.bookmarkInterval?.seconds ?? 0) > 0;
          break;
      }
      if (complete && snapshot.size === 2) resolve();
    });
  });
  stream.cancel();
  seen["snapshot"] = sorted(snapshot);
  seen["follow"] = sorted(await swap());

  const { subscription } = await call(subscriptions.createSubscription.bind(subscriptions), {
    addresses: [ALICE],
    criteria: [Status.STATUS_BUSY],
    checkImmediate: false,
    minInterval: undefined,
    duration: undefined,
    maxNotificationCount: 0,
    sink: { kind: { $case: "listed", listed: {} } },
    correlator: "",
    requestId: "",
    requester: "",
  });
  if (!subscription) throw new Error("no subscription");
  seen["subscription"] = [
    subscription.sink?.kind?.$case === "listed",
    ...subscription.criteria.map((one) => statusToJSON(one)),
  ];
  await call(subscriptions.cancelSubscription.bind(subscriptions), {
    subscription: { $case: "subscriptionId", subscriptionId: subscription.id },
    requester: "",
  });

  console.log(JSON.stringify(seen));
  terminals.close();
  subscriptions.close();
}

void main();
