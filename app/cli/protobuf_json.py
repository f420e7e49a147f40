"""Protobuf messages as JSON for programs.

Every field is present (null where unset), named as in the proto. Enum values lose their prefix (UNSPECIFIED is null),
times are RFC 3339, durations milliseconds with `_ms` added to the name, bytes text. A google.rpc.Status has the reason,
message and metadata of its error.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped, unused-ignore]


def plain(message: "Message") -> dict[str, Any]:
    """The message as a dict that `json.dumps` takes."""
    return dict([_field(message, field) for field in message.DESCRIPTOR.fields])


def enum_name(message: "Message", field: str) -> str:
    """The name of an enum field's value without its prefix; "" for UNSPECIFIED."""
    return _enum(message.DESCRIPTOR.fields_by_name[field], getattr(message, field)) or ""


def enum_names(message: "Message", field: str) -> list[str]:
    """As `enum_name`, for a repeated field."""
    return [_enum(message.DESCRIPTOR.fields_by_name[field], value) or "" for value in getattr(message, field)]


def reason_of(status: "Status") -> str:
    """The `ErrorInfo.reason` of a google.rpc.Status; "" without one."""
    info = _error_info(status)
    return "" if info is None else str(info.reason)


def _error_info(status: "Status") -> Any:
    from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped, unused-ignore]

    for detail in status.details:
        info = ErrorInfo()
        if detail.Unpack(info):
            return info
    return None


def _status(status: "Status") -> dict[str, Any]:
    info = _error_info(status)
    metadata = {} if info is None else dict(info.metadata)
    return {"reason": reason_of(status), "message": status.message, "metadata": metadata}


def _field(message: "Message", field: Any) -> tuple[str, Any]:
    value, of = getattr(message, field.name), field.message_type
    name = f"{field.name}_ms" if of and of.full_name == "google.protobuf.Duration" else field.name
    if of and of.GetOptions().map_entry:
        return name, dict(value)
    if field.is_repeated:
        return name, [_value(field, each) for each in value]
    if of and not message.HasField(field.name):
        return name, None
    return name, _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if of := field.message_type:
        if of.full_name == "google.protobuf.Timestamp":
            return value.ToJsonString()
        if of.full_name == "google.protobuf.Duration":
            return value.seconds * 1000 + value.nanos // 1_000_000
        if of.full_name == "google.rpc.Status":
            return _status(value)
        return plain(value)
    if field.enum_type:
        return _enum(field, value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _enum(field: Any, value: int) -> str | None:
    if value == 0:
        return None
    values = field.enum_type.values_by_number
    name: str = values[value].name if value in values else str(value)  # a newer gateway may send unknown values
    return name.removeprefix(values[0].name.removesuffix("UNSPECIFIED"))
