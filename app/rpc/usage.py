"""UsageService: what a client did and was sent. A handler is check, call, map error, return; no rules here."""

from app.core.usage import UsageLog
from app.pb.terminalstatus.v1 import usage_pb2 as pb
from app.pb.terminalstatus.v1 import usage_pb2_grpc as pb_grpc
from app.rpc import wire
from app.rpc.calls import Calls, Context


class UsageServicer(pb_grpc.UsageServiceServicer):
    """As the proto says."""

    def __init__(self, calls: Calls, usage: UsageLog) -> None:
        self._calls = calls
        self._usage = usage

    async def ListUsageRecords(  # noqa: N802
        self, request: pb.ListUsageRecordsRequest, context: Context
    ) -> pb.ListUsageRecordsResponse:
        async with self._calls.answer(context, "ListUsageRecords") as client:
            found, token = await self._usage.page(client, wire.since(request), wire.page(request))
            return pb.ListUsageRecordsResponse(usage_records=map(wire.usage_record, found), next_page_token=token)

    async def ExportUsageRecords(self, request: pb.ExportUsageRecordsRequest, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        async with self._calls.answer(context, "ExportUsageRecords") as client:
            async for found in self._usage.export(client, wire.since(request)):
                if found:
                    await context.write(pb.ExportUsageRecordsResponse(usage_records=map(wire.usage_record, found)))
