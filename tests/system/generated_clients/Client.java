// The gateway's client in Java, over the code that protoc and protoc-gen-grpc-java make. Arguments and output: see
// test_generated_clients.py.

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import com.terminalstatus.v1.AddressChange;
import com.terminalstatus.v1.CancelSubscriptionRequest;
import com.terminalstatus.v1.CreateSubscriptionRequest;
import com.terminalstatus.v1.FollowStatusesRequest;
import com.terminalstatus.v1.FollowStatusesResponse;
import com.terminalstatus.v1.GetStatusRequest;
import com.terminalstatus.v1.ListedSink;
import com.terminalstatus.v1.QueryStatusesRequest;
import com.terminalstatus.v1.RetrievalStatus;
import com.terminalstatus.v1.Sink;
import com.terminalstatus.v1.Status;
import com.terminalstatus.v1.Subscription;
import com.terminalstatus.v1.SubscriptionServiceGrpc;
import com.terminalstatus.v1.TerminalResult;
import com.terminalstatus.v1.TerminalStatus;
import com.terminalstatus.v1.TerminalStatusServiceGrpc;
import com.terminalstatus.v1.WatchStatusesRequest;
import com.terminalstatus.v1.WatchStatusesResponse;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;

final class Client {
  private static final long LIMIT_S = 20;
  private static final String ALICE = "sip:alice@example.com";
  private static final String BOB = "sip:bob@example.com";
  private static final String DAVE = "sip:dave@example.com";
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  private static ErrorInfo info(List<Any> details) throws InvalidProtocolBufferException {
    for (Any detail : details) {
      if (detail.is(ErrorInfo.class)) {
        return detail.unpack(ErrorInfo.class);
      }
    }
    throw new AssertionError("no ErrorInfo");
  }

  private static String json(Map<String, String> rows) {
    return rows.entrySet().stream()
        .map(row -> String.format("[\"%s\",\"%s\"]", row.getKey(), row.getValue()))
        .collect(Collectors.joining(",", "[", "]"));
  }

  /** Replaces Alice by Bob on an open stream. */
  private static Map<String, String> swap(ManagedChannel channel) throws InterruptedException {
    Map<String, String> followed = new TreeMap<>();
    BlockingQueue<FollowStatusesResponse> messages = new LinkedBlockingQueue<>();
    StreamObserver<FollowStatusesRequest> requests =
        TerminalStatusServiceGrpc.newStub(channel)
            .withDeadlineAfter(LIMIT_S, TimeUnit.SECONDS)
            .followStatuses(
                new StreamObserver<FollowStatusesResponse>() {
                  @Override
                  public void onNext(FollowStatusesResponse message) {
                    messages.add(message);
                  }

                  @Override
                  public void onError(Throwable error) {
                    error.printStackTrace();
                  }

                  @Override
                  public void onCompleted() {}
                });
    var open = WatchStatusesRequest.newBuilder().addAddresses(ALICE);
    requests.onNext(FollowStatusesRequest.newBuilder().setOpen(open).build());
    boolean sent = false;
    while (true) {
      FollowStatusesResponse message = messages.poll(LIMIT_S, TimeUnit.SECONDS);
      if (message == null) {
        throw new AssertionError("no event");
      }
      if (message.hasChangeApplied()) {
        if (!message.getChangeApplied().hasError()) {
          followed.put(message.getChangeApplied().getChangeId(), "applied");
        }
        requests.onCompleted();
        return followed;
      }
      WatchStatusesResponse event = message.getStatusEvent();
      switch (event.getEventCase()) {
        case SNAPSHOT_COMPLETE -> {
          var change =
              AddressChange.newBuilder().setChangeId("swap").addAddAddresses(BOB).addRemoveAddresses(ALICE);
          requests.onNext(FollowStatusesRequest.newBuilder().setChange(change).build());
          sent = true;
        }
        case SNAPSHOT_ITEM -> {
          if (sent) {
            followed.put(event.getSnapshotItem().getAddress(), "added");
          }
        }
        case TERMINAL_REMOVED -> followed.put(event.getTerminalRemoved().getAddress(), "removed");
        default -> {}
      }
    }
  }

  public static void main(String[] arguments) throws Exception {
    ManagedChannel channel = ManagedChannelBuilder.forTarget(arguments[0]).usePlaintext().build();
    var terminals =
        TerminalStatusServiceGrpc.newBlockingStub(channel).withDeadlineAfter(LIMIT_S, TimeUnit.SECONDS);
    var subscriptions =
        SubscriptionServiceGrpc.newBlockingStub(channel).withDeadlineAfter(LIMIT_S, TimeUnit.SECONDS);
    Map<String, String> seen = new TreeMap<>();

    TerminalStatus alice = terminals.getStatus(GetStatusRequest.newBuilder().setAddress(ALICE).build()).getStatus();
    seen.put("status", "\"" + alice.getStatus() + "\"");
    seen.put("source", "\"" + alice.getSource() + "\"");
    seen.put("observed", String.valueOf(alice.getObserveTime().getSeconds() > 0));

    try {
      terminals.getStatus(GetStatusRequest.newBuilder().setAddress(DAVE).build());
    } catch (StatusRuntimeException error) {
      ErrorInfo info = info(com.google.rpc.Status.parseFrom(error.getTrailers().get(DETAILS)).getDetailsList());
      StringBuilder code = new StringBuilder();
      for (String word : error.getStatus().getCode().name().split("_")) {
        code.append(word.charAt(0)).append(word.substring(1).toLowerCase());
      }
      seen.put(
          "error",
          String.format(
              "[\"%s\",\"%s\",\"%s\",\"%s\"]",
              code, info.getReason(), info.getDomain(), info.getMetadataOrThrow("address")));
    }

    Map<String, String> results = new TreeMap<>();
    var query = QueryStatusesRequest.newBuilder().addAddresses(ALICE).addAddresses(DAVE).build();
    for (var messages = terminals.queryStatuses(query); messages.hasNext(); ) {
      TerminalResult result = messages.next().getResult();
      boolean retrieved = result.getRetrievalStatus() == RetrievalStatus.RETRIEVAL_STATUS_RETRIEVED;
      results.put(
          result.getAddress(),
          retrieved
              ? result.getStatus().getStatus().name()
              : info(result.getError().getDetailsList()).getReason());
    }
    seen.put("query", json(results));

    Map<String, String> snapshot = new TreeMap<>();
    try (Context.CancellableContext watching = Context.current().withCancellation()) {
      Context before = watching.attach();
      var request = WatchStatusesRequest.newBuilder().addAddresses(ALICE).addAddresses(BOB).build();
      Iterator<WatchStatusesResponse> stream = terminals.watchStatuses(request);
      watching.detach(before);
      boolean complete = false;
      while (!complete || snapshot.size() < 2) {
        WatchStatusesResponse message = stream.next();
        switch (message.getEventCase()) {
          case SNAPSHOT_ITEM -> {
            if (message.getSnapshotItem().hasStatus()) {
              TerminalStatus status = message.getSnapshotItem().getStatus();
              snapshot.put(message.getSnapshotItem().getAddress(), status.getStatus().name());
            }
          }
          case CHANGE -> {
            TerminalStatus status = message.getChange().getStatus();
            snapshot.put(status.getAddress(), status.getStatus().name());
          }
          case SNAPSHOT_COMPLETE -> {
            complete = true;
            long seconds = message.getSnapshotComplete().getBookmarkInterval().getSeconds();
            seen.put("bookmarks", String.valueOf(seconds > 0));
          }
          default -> {}
        }
      }
    }
    seen.put("snapshot", json(snapshot));
    seen.put("follow", json(swap(channel)));

    var request =
        CreateSubscriptionRequest.newBuilder()
            .addAddresses(ALICE)
            .addCriteria(Status.STATUS_BUSY)
            .setSink(Sink.newBuilder().setListed(ListedSink.getDefaultInstance()))
            .build();
    Subscription created = subscriptions.createSubscription(request).getSubscription();
    boolean listed = created.getSink().getKindCase() == Sink.KindCase.LISTED;
    seen.put("subscription", String.format("[%s,\"%s\"]", listed, created.getCriteria(0)));
    subscriptions.cancelSubscription(
        CancelSubscriptionRequest.newBuilder().setSubscriptionId(created.getId()).build());

    System.out.println(
        seen.entrySet().stream()
            .map(one -> String.format("\"%s\":%s", one.getKey(), one.getValue()))
            .collect(Collectors.joining(",", "{", "}")));
    channel.shutdownNow();
  }
}
