"""UsageService: usage records for billing."""

from app.core.usage import UsageLog
from app.pb.terminalstatus.v1 import usage_pb2 as pb
from app.pb.terminalstatus.v1 import usage_pb2_grpc as pb_grpc
from app.rpc import list_filters, request_fields, response_messages
from app.rpc.callers import Context
from app.rpc.open_calls import OpenCalls


class UsageServicer(pb_grpc.UsageServiceServicer):
    def __init__(self, calls: OpenCalls, usage: UsageLog) -> None:
        self._calls = calls
        self._usage = usage

    async def ListUsageRecords(  # noqa: N802
        self, request: pb.ListUsageRecordsRequest, context: Context
    ) -> pb.ListUsageRecordsResponse:
        async with self._calls.answer(context, "ListUsageRecords") as client:
            found, token = await self._usage.page(client, request_fields.page(request), list_filters.of_usage(request))
            return pb.ListUsageRecordsResponse(
                usage_records=map(response_messages.usage_record, found), next_page_token=token
            )

    async def ExportUsageRecords(self, request: pb.ExportUsageRecordsRequest, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        async with self._calls.answer(context, "ExportUsageRecords") as client:
            async for found in self._usage.export(client, list_filters.of_usage(request)):
                if found:
                    await context.write(
                        pb.ExportUsageRecordsResponse(usage_records=map(response_messages.usage_record, found))
                    )
