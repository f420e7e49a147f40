"""Server reflection: by it tools find the services and read the contract. Served as `grpc.reflection.v1` and, for older
tools, as `grpc.reflection.v1alpha`.

The two versions have the same messages under other names, so their bytes are the same. grpcio-reflection has only
v1alpha: its servicer answers both, and the descriptors of v1 are made from those of v1alpha.

Deliberately absent: credentials; the contract is the same for everybody.
"""

from collections.abc import Collection
from typing import Any

import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1ALPHA_NAME = reflection.SERVICE_NAME
V1_NAME = V1ALPHA_NAME.replace("v1alpha", "v1")

_V1_FILE = "grpc/reflection/v1/reflection.proto"


def add_reflection(server: grpc.aio.Server, names: Collection[str]) -> None:
    """Adds both versions to `server`. They list themselves and the services `names`."""
    _know_v1()
    servicer = reflection.aio.ReflectionServicer((*names, V1_NAME, V1ALPHA_NAME))
    for name in (V1_NAME, V1ALPHA_NAME):
        handler: Any = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        server.add_registered_method_handlers(name, {"ServerReflectionInfo": handler})


def _know_v1() -> None:
    """Adds the descriptors of v1 to those of this process: tools that list the services then ask for each of them."""
    v1alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(v1alpha)
    v1 = json_format.Parse(
        json_format.MessageToJson(v1alpha).replace("v1alpha", "v1"), descriptor_pb2.FileDescriptorProto()
    )
    v1.name = _V1_FILE
    v1.options.ClearField("deprecated")
    descriptor_pool.Default().Add(v1)  # no effect if they are there already
