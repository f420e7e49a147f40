// What the gateway does on the wire for grpc-go. Arguments and output: see test_generated_clients.py.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "terminalstatus/v1"
)

const (
	alice = "sip:alice@example.com"
	limit = 1024 * 1024
)

var inner = regexp.MustCompile("([a-z])([A-Z])")

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// code returns the name that gRPC's specification has for a code; Go spells them otherwise.
func code(err error) string {
	if status.Code(err) == codes.Canceled {
		return "CANCELLED"
	}
	return strings.ToUpper(inner.ReplaceAllString(status.Code(err).String(), "${1}_${2}"))
}

// ask returns the status of a terminal; of a failed call its code, and the reason if the error has details.
func ask(ctx context.Context, client pb.TerminalStatusServiceClient, terminal string, options ...grpc.CallOption) []string {
	answer, err := client.GetStatus(ctx, &pb.GetStatusRequest{Address: terminal}, options...)
	if err == nil {
		return []string{answer.Status.Status.String()}
	}
	seen := []string{code(err)}
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			seen = append(seen, info.Reason)
		}
	}
	return seen
}

// watch opens a stream and returns it when its snapshot is complete.
func watch(ctx context.Context, client pb.TerminalStatusServiceClient) (pb.TerminalStatusService_WatchStatusesClient, error) {
	stream, err := client.WatchStatuses(ctx, &pb.WatchStatusesRequest{Addresses: []string{alice}})
	for err == nil {
		var message *pb.WatchStatusesResponse
		if message, err = stream.Recv(); err == nil && message.GetSnapshotComplete() != nil {
			return stream, nil
		}
	}
	return nil, err
}

// ended returns the code with which a stream ends.
func ended(stream pb.TerminalStatusService_WatchStatusesClient) string {
	for {
		if _, err := stream.Recv(); err != nil {
			return code(err)
		}
	}
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	clients := []pb.TerminalStatusServiceClient{}
	for _, address := range os.Args[1:] {
		connection, err := grpc.DialContext(ctx, address, grpc.WithInsecure(), grpc.WithBlock())
		check(err)
		clients = append(clients, pb.NewTerminalStatusServiceClient(connection))
	}
	client, closed := clients[0], clients[1]
	seen := map[string]interface{}{"unary": ask(ctx, client, alice)}

	soon, done := context.WithTimeout(ctx, 300*time.Millisecond)
	defer done()
	seen["deadline"] = ask(soon, client, "sip:silent@example.com")

	soon, done = context.WithTimeout(ctx, 300*time.Millisecond)
	defer done()
	stream, err := watch(soon, client)
	check(err)
	seen["stream_deadline"] = ended(stream)

	watching, stop := context.WithCancel(ctx)
	stream, err = watch(watching, client)
	check(err)
	stop()
	seen["cancel"] = ended(stream)

	zipped := grpc.UseCompressor(gzip.Name)
	large, tooLarge := strings.Repeat("a", limit-100), strings.Repeat("a", limit+1)
	seen["large"] = ask(ctx, client, large)
	seen["too_large"] = ask(ctx, client, tooLarge)
	seen["gzip"] = ask(ctx, client, alice, zipped)
	seen["gzip_large"] = ask(ctx, client, large, zipped)
	seen["gzip_too_large"] = ask(ctx, client, tooLarge, zipped)
	seen["credentials"] = ask(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer tsk_a_b"), closed, alice)

	watching, stop = context.WithCancel(ctx)
	begun, ends := make(chan error), make(chan string)
	for number := 0; number < 2000; number++ {
		go func() {
			stream, err := watch(watching, client)
			begun <- err
			if err == nil {
				ends <- ended(stream)
			}
		}()
	}
	for number := 0; number < 2000; number++ {
		check(<-begun)
	}
	stop()
	cancelled := 0
	for number := 0; number < 2000; number++ {
		if <-ends == "CANCELLED" {
			cancelled++
		}
	}
	seen["streams"] = cancelled
	seen["after"] = ask(ctx, client, alice)
	check(json.NewEncoder(os.Stdout).Encode(seen))
}
