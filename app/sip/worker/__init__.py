"""What runs in the child process that speaks SIP.

- `main.py`: the loop: commands from the gateway, packets from PJSIP, reports to the gateway
- `fetches.py`: one SUBSCRIBE with `Expires: 0` each; `watches.py`: each drives one `app.sip.machine`
- `failover.py`: which presence server is asked; `probe_fetch.py`: a fetch where OPTIONS gets no answer
- `send_rate.py`: when a SUBSCRIBE may leave; `fair_queue.py`: which one is next
- `large_documents.py`: the terminals that need TCP
"""
