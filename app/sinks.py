"""Every kind of sink that this gateway offers, with its contract, which the kind's face defines."""

from app.domain.sink_contracts import STREAM_CONTRACT, WEBHOOK_CONTRACT, SinkContracts
from app.domain.sinks import PROFILE_CAMARA, SinkKind
from app.rest.camara.sink_contract import CAMARA_CONTRACT
from soap_compat.sink_contract import SOAP_CONTRACT

SINK_CONTRACTS = SinkContracts(
    {SinkKind.STREAM: STREAM_CONTRACT, SinkKind.WEBHOOK: WEBHOOK_CONTRACT, SinkKind.SOAP: SOAP_CONTRACT},
    {(SinkKind.WEBHOOK, PROFILE_CAMARA): CAMARA_CONTRACT},
)
