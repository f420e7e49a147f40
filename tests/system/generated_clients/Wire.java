// What the gateway does on the wire for grpc-java. Arguments and output: see test_generated_clients.py.

import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import com.terminalstatus.v1.GetStatusRequest;
import com.terminalstatus.v1.TerminalStatusServiceGrpc;
import com.terminalstatus.v1.TerminalStatusServiceGrpc.TerminalStatusServiceBlockingStub;
import com.terminalstatus.v1.WatchStatusesRequest;
import com.terminalstatus.v1.WatchStatusesResponse;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import io.grpc.stub.MetadataUtils;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;

final class Wire {
  private static final long LIMIT_MS = 30_000;
  private static final int LIMIT_BYTES = 1024 * 1024;
  private static final String ALICE = "sip:alice@example.com";
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  /** The status of a terminal; of a failed call its code, and the reason if the error has details. */
  private static String ask(TerminalStatusServiceBlockingStub client, String terminal, long limitMs) throws Exception {
    List<String> seen = new ArrayList<>();
    try {
      var request = GetStatusRequest.newBuilder().setAddress(terminal).build();
      var answer = client.withDeadlineAfter(limitMs, TimeUnit.MILLISECONDS).getStatus(request);
      seen.add(answer.getStatus().getStatus().name());
    } catch (StatusRuntimeException error) {
      seen.add(error.getStatus().getCode().name());
      Metadata trailers = error.getTrailers();
      byte[] packed = trailers == null ? null : trailers.get(DETAILS);
      if (packed != null) {
        for (Any detail : com.google.rpc.Status.parseFrom(packed).getDetailsList()) {
          if (detail.is(ErrorInfo.class)) {
            seen.add(detail.unpack(ErrorInfo.class).getReason());
          }
        }
      }
    }
    return seen.stream().map(Wire::quoted).collect(Collectors.joining(",", "[", "]"));
  }

  private static String quoted(String text) {
    return "\"" + text + "\"";
  }

  /** A stream; `snapshot` completes with its snapshot, `end` with the code of its end. */
  private static final class Watch implements ClientResponseObserver<WatchStatusesRequest, WatchStatusesResponse> {
    final CompletableFuture<Void> snapshot = new CompletableFuture<>();
    final CompletableFuture<String> end = new CompletableFuture<>();
    private ClientCallStreamObserver<WatchStatusesRequest> requests;

    Watch(ManagedChannel channel, long limitMs) {
      var request = WatchStatusesRequest.newBuilder().addAddresses(ALICE).build();
      TerminalStatusServiceGrpc.newStub(channel)
          .withDeadlineAfter(limitMs, TimeUnit.MILLISECONDS)
          .watchStatuses(request, this);
    }

    void cancel() {
      requests.cancel("seen", null);
    }

    @Override
    public void beforeStart(ClientCallStreamObserver<WatchStatusesRequest> observer) {
      requests = observer;
    }

    @Override
    public void onNext(WatchStatusesResponse message) {
      if (message.hasSnapshotComplete()) {
        snapshot.complete(null);
      }
    }

    @Override
    public void onError(Throwable error) {
      end.complete(Status.fromThrowable(error).getCode().name());
      snapshot.completeExceptionally(error);
    }

    @Override
    public void onCompleted() {
      end.complete("OK");
    }
  }

  public static void main(String[] arguments) throws Exception {
    ManagedChannel channel = ManagedChannelBuilder.forTarget(arguments[0]).usePlaintext().build();
    ManagedChannel closed = ManagedChannelBuilder.forTarget(arguments[1]).usePlaintext().build();
    var client = TerminalStatusServiceGrpc.newBlockingStub(channel);
    Map<String, String> seen = new TreeMap<>();
    seen.put("unary", ask(client, ALICE, LIMIT_MS));
    seen.put("deadline", ask(client, "sip:silent@example.com", 300));

    Watch brief = new Watch(channel, 300);
    brief.snapshot.get();
    seen.put("stream_deadline", quoted(brief.end.get(LIMIT_MS, TimeUnit.MILLISECONDS)));

    Watch cancelled = new Watch(channel, LIMIT_MS);
    cancelled.snapshot.get();
    cancelled.cancel();
    seen.put("cancel", quoted(cancelled.end.get(LIMIT_MS, TimeUnit.MILLISECONDS)));

    var zipped = client.withCompression("gzip");
    String large = "a".repeat(LIMIT_BYTES - 100);
    String tooLarge = "a".repeat(LIMIT_BYTES + 1);
    seen.put("large", ask(client, large, LIMIT_MS));
    seen.put("too_large", ask(client, tooLarge, LIMIT_MS));
    seen.put("gzip", ask(zipped, ALICE, LIMIT_MS));
    seen.put("gzip_large", ask(zipped, large, LIMIT_MS));
    seen.put("gzip_too_large", ask(zipped, tooLarge, LIMIT_MS));

    Metadata bad = new Metadata();
    bad.put(AUTHORIZATION, "Bearer tsk_a_b");
    seen.put("credentials", ask(MetadataUtils.attachHeaders(TerminalStatusServiceGrpc.newBlockingStub(closed), bad), ALICE, LIMIT_MS));

    List<Watch> streams = new ArrayList<>();
    for (int number = 0; number < 2000; number++) {
      streams.add(new Watch(channel, LIMIT_MS));
    }
    for (Watch each : streams) {
      each.snapshot.get();
    }
    streams.forEach(Watch::cancel);
    int count = 0;
    for (Watch each : streams) {
      count += each.end.get(LIMIT_MS, TimeUnit.MILLISECONDS).equals("CANCELLED") ? 1 : 0;
    }
    seen.put("streams", String.valueOf(count));
    seen.put("after", ask(client, ALICE, LIMIT_MS));

    System.out.println(
        seen.entrySet().stream()
            .map(one -> quoted(one.getKey()) + ":" + one.getValue())
            .collect(Collectors.joining(",", "{", "}")));
    channel.shutdownNow();
    closed.shutdownNow();
  }
}
