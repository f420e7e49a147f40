// The gateway's client in Go, over the code that protoc-gen-go and protoc-gen-go-grpc make. Arguments and output: see
// test_generated_clients.py.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sort"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	pb "terminalstatus/v1"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func info(failure *status.Status) *errdetails.ErrorInfo {
	for _, detail := range failure.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return &errdetails.ErrorInfo{}
}

func listed(values map[string]string) [][]string {
	rows := [][]string{}
	for address, value := range values {
		rows = append(rows, []string{address, value})
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i][0] < rows[j][0] })
	return rows
}

// swap replaces alice by bob on an open stream.
func swap(ctx context.Context, terminals pb.TerminalStatusServiceClient) map[string]string {
	stream, err := terminals.FollowStatuses(ctx)
	check(err)
	check(stream.Send(&pb.FollowStatusesRequest{Request: &pb.FollowStatusesRequest_Open{
		Open: &pb.WatchStatusesRequest{Addresses: []string{"sip:alice@example.com"}},
	}}))
	followed, sent := map[string]string{}, false
	for {
		message, err := stream.Recv()
		check(err)
		switch event := message.Event.(type) {
		case *pb.FollowStatusesResponse_StatusEvent:
			switch inner := event.StatusEvent.Event.(type) {
			case *pb.WatchStatusesResponse_SnapshotComplete:
				check(stream.Send(&pb.FollowStatusesRequest{Request: &pb.FollowStatusesRequest_Change{
					Change: &pb.AddressChange{
						ChangeId:        "swap",
						AddAddresses:    []string{"sip:bob@example.com"},
						RemoveAddresses: []string{"sip:alice@example.com"},
					},
				}}))
				sent = true
			case *pb.WatchStatusesResponse_SnapshotItem:
				if sent {
					followed[inner.SnapshotItem.Address] = "added"
				}
			case *pb.WatchStatusesResponse_TerminalRemoved:
				followed[inner.TerminalRemoved.Address] = "removed"
			}
		case *pb.FollowStatusesResponse_ChangeApplied:
			if event.ChangeApplied.Error == nil {
				followed[event.ChangeApplied.ChangeId] = "applied"
			}
			return followed
		}
	}
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	connection, err := grpc.DialContext(ctx, os.Args[1], grpc.WithInsecure(), grpc.WithBlock())
	check(err)
	terminals := pb.NewTerminalStatusServiceClient(connection)
	subscriptions := pb.NewSubscriptionServiceClient(connection)
	seen := map[string]interface{}{}

	answer, err := terminals.GetStatus(ctx, &pb.GetStatusRequest{Address: "sip:alice@example.com"})
	check(err)
	seen["status"] = answer.Status.Status.String()
	seen["source"] = answer.Status.Source.String()
	seen["observed"] = answer.Status.ObserveTime.AsTime().After(time.Unix(0, 0))

	_, err = terminals.GetStatus(ctx, &pb.GetStatusRequest{Address: "sip:dave@example.com"})
	failure := status.Convert(err)
	cause := info(failure)
	seen["error"] = []string{failure.Code().String(), cause.Reason, cause.Domain, cause.Metadata["address"]}

	query, err := terminals.QueryStatuses(ctx, &pb.QueryStatusesRequest{
		Addresses: []string{"sip:alice@example.com", "sip:dave@example.com"},
	})
	check(err)
	results := map[string]string{}
	for {
		message, err := query.Recv()
		if err == io.EOF {
			break
		}
		check(err)
		result := message.Result
		if result.RetrievalStatus == pb.RetrievalStatus_RETRIEVAL_STATUS_RETRIEVED {
			results[result.Address] = result.Status.Status.String()
		} else {
			results[result.Address] = info(status.FromProto(result.Error)).Reason
		}
	}
	seen["query"] = listed(results)

	watching, stop := context.WithCancel(ctx)
	stream, err := terminals.WatchStatuses(watching, &pb.WatchStatusesRequest{
		Addresses: []string{"sip:alice@example.com", "sip:bob@example.com"},
	})
	check(err)
	snapshot, complete := map[string]string{}, false
	for !complete || len(snapshot) < 2 {
		message, err := stream.Recv()
		check(err)
		switch event := message.Event.(type) {
		case *pb.WatchStatusesResponse_SnapshotItem:
			if event.SnapshotItem.Status != nil {
				snapshot[event.SnapshotItem.Address] = event.SnapshotItem.Status.Status.String()
			}
		case *pb.WatchStatusesResponse_Change:
			snapshot[event.Change.Status.Address] = event.Change.Status.Status.String()
		case *pb.WatchStatusesResponse_SnapshotComplete:
			complete = true
			seen["bookmarks"] = event.SnapshotComplete.BookmarkInterval.AsDuration() > 0
		}
	}
	seen["snapshot"] = listed(snapshot)
	seen["follow"] = listed(swap(watching, terminals))
	stop()

	created, err := subscriptions.CreateSubscription(ctx, &pb.CreateSubscriptionRequest{
		Addresses: []string{"sip:alice@example.com"},
		Criteria:  []pb.Status{pb.Status_STATUS_BUSY},
		Sink:      &pb.Sink{Kind: &pb.Sink_Listed{Listed: &pb.ListedSink{}}},
	})
	check(err)
	_, isListed := created.Subscription.Sink.Kind.(*pb.Sink_Listed)
	seen["subscription"] = []interface{}{isListed, created.Subscription.Criteria[0].String()}
	_, err = subscriptions.CancelSubscription(ctx, &pb.CancelSubscriptionRequest{
		Subscription: &pb.CancelSubscriptionRequest_SubscriptionId{SubscriptionId: created.Subscription.Id},
	})
	check(err)
	check(json.NewEncoder(os.Stdout).Encode(seen))
}
