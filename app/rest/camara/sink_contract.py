"""What a CAMARA subscription promises its sink (Commonalities r1.2).

A change between REACHABLE and BUSY is no event: CAMARA has no word for BUSY, and a busy device is reachable with data.
Every end is reported, the client's own DELETE too (`subscription-ended` with SUBSCRIPTION_DELETED).
"""

from app.domain.sink_contracts import ALL_ENDS, SinkContract

CAMARA_CONTRACT = SinkContract(shows_busy=False, announces_start=True, ends=ALL_ENDS, changeable=False)
