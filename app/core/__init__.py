"""The use cases: what is asked, watched, told, grouped, allowed and accounted for. No transport, no SQL, no SIP."""
