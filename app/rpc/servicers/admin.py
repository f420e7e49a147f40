"""AdminService: watches, clients and the audit log, for operators."""

from app.auth.clients import DEFAULT_OVERLAP_S
from app.core.administration import Administration
from app.domain.records import Client
from app.pb.terminalstatus.v1 import admin_pb2 as pb
from app.pb.terminalstatus.v1 import admin_pb2_grpc as pb_grpc
from app.rpc import list_filters, request_fields, response_messages
from app.rpc.callers import Context
from app.rpc.open_calls import OpenCalls


class AdminServicer(pb_grpc.AdminServiceServicer):
    def __init__(self, calls: OpenCalls, administration: Administration) -> None:
        self._calls = calls
        self._administration = administration

    async def ListWatches(self, request: pb.ListWatchesRequest, context: Context) -> pb.ListWatchesResponse:  # noqa: N802
        async with self._calls.answer(context, "ListWatches") as client:
            found, token, total = await self._administration.watches(
                client, request_fields.page(request), list_filters.of_watches(request)
            )
            return pb.ListWatchesResponse(
                watches=[response_messages.watch(each.watch, each.wanted_by) for each in found],
                next_page_token=token,
                total_size=total,
            )

    async def GetWatch(self, request: pb.GetWatchRequest, context: Context) -> pb.GetWatchResponse:  # noqa: N802
        async with self._calls.answer(context, "GetWatch") as client:
            found = await self._administration.watch(client, request.address)
            return pb.GetWatchResponse(watch=response_messages.watch(found.watch, found.wanted_by))

    async def GetClient(self, request: pb.GetClientRequest, context: Context) -> pb.GetClientResponse:  # noqa: N802
        async with self._calls.answer(context, "GetClient") as client:
            found, keys = await self._administration.client(client, request.client_id)
            return pb.GetClientResponse(client=response_messages.client(found, keys))

    async def RefreshWatch(self, request: pb.RefreshWatchRequest, context: Context) -> pb.RefreshWatchResponse:  # noqa: N802
        async with self._calls.answer(context, "RefreshWatch") as client:
            await self._administration.refresh_watch(client, request.address)
            return pb.RefreshWatchResponse()

    async def CreateClient(self, request: pb.CreateClientRequest, context: Context) -> pb.CreateClientResponse:  # noqa: N802
        async with self._calls.answer(context, "CreateClient") as client:
            made, key = await self._administration.create_client(
                client,
                request.name,
                client_id=request.client_id,
                admin=request.admin,
                limits=request_fields.limits(request.limits),
                soap_callback_version=request.soap_callback_version,
            )
            keys = await self._administration.keys(client, made.id)
            return pb.CreateClientResponse(client=response_messages.client(made, keys), api_key=key)

    async def ListClients(self, request: pb.ListClientsRequest, context: Context) -> pb.ListClientsResponse:  # noqa: N802
        async with self._calls.answer(context, "ListClients") as client:
            found, token = await self._administration.clients(client, request_fields.page(request))
            return pb.ListClientsResponse(
                clients=[response_messages.client(each, keys) for each, keys in found], next_page_token=token
            )

    async def RotateClientKey(  # noqa: N802
        self, request: pb.RotateClientKeyRequest, context: Context
    ) -> pb.RotateClientKeyResponse:
        async with self._calls.answer(context, "RotateClientKey") as client:
            asked = request_fields.duration_s(request, "overlap")
            overlap_s = DEFAULT_OVERLAP_S if asked is None else asked
            rotated, key = await self._administration.rotate_key(client, request.client_id, overlap_s)
            keys = await self._administration.keys(client, rotated.id)
            return pb.RotateClientKeyResponse(client=response_messages.client(rotated, keys), api_key=key)

    async def DisableClient(self, request: pb.DisableClientRequest, context: Context) -> pb.DisableClientResponse:  # noqa: N802
        async with self._calls.answer(context, "DisableClient") as client:
            return pb.DisableClientResponse(client=await self._set_disabled(client, request.client_id, disabled=True))

    async def EnableClient(self, request: pb.EnableClientRequest, context: Context) -> pb.EnableClientResponse:  # noqa: N802
        async with self._calls.answer(context, "EnableClient") as client:
            return pb.EnableClientResponse(client=await self._set_disabled(client, request.client_id, disabled=False))

    async def _set_disabled(self, client: Client, client_id: str, *, disabled: bool) -> pb.Client:
        changed = await self._administration.set_disabled(client, client_id, disabled)
        return response_messages.client(changed, await self._administration.keys(client, changed.id))

    async def DeleteClient(self, request: pb.DeleteClientRequest, context: Context) -> pb.DeleteClientResponse:  # noqa: N802
        async with self._calls.answer(context, "DeleteClient") as client:
            ended = await self._administration.delete_client(client, request.client_id)
            return pb.DeleteClientResponse(ended_subscription_count=ended)

    async def ListAuditEntries(  # noqa: N802
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        async with self._calls.answer(context, "ListAuditEntries") as client:
            found, token = await self._administration.audit_log(
                client, request_fields.page(request), list_filters.of_audit_entries(request)
            )
            return pb.ListAuditEntriesResponse(
                audit_entries=map(response_messages.audit_entry, found), next_page_token=token
            )
