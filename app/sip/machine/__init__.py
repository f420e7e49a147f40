"""The life of one watch as a pure state machine (RFC 6665 section 4.1): no PJSIP, no I/O, no clock, no randomness.

- `watch_machine.py`: the machine: takes events, returns actions; `watch_state.py`: what it keeps of one watch
- `events.py`: what can happen to a watch; `actions.py`: what the driver then has to do
- `states.py`: the states, the dialog, and the snapshot for operators
- `retries.py`: when a failed watch tries again; `send_limit.py`: how many SUBSCRIBEs one watch may send
- `timer_n.py`: the wait for the NOTIFY after a refresh; `liveness_report.py`: LIVE, STALE or UNKNOWN, and why
- `timing.py`: every duration
"""
