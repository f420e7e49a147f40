"""The `Watcher` port over SIP SUBSCRIBE/NOTIFY (RFC 6665, RFC 3856): PJSIP in supervised child processes.

- `watcher.py`: the port; `wanted_watches.py`: which terminals are to be watched
- `supervisor.py`: replaces dead workers; `worker_process.py`: one worker as the gateway sees it; `worker_counts.py`
- `protocol.py`: the messages between the two; `settings.py`: a worker's configuration
- `worker/`: what runs in the child; `machine/`: the life of one watch, pure; `pjsip/`: the C side
- `answers.py`: the meaning of a presence server's answers; `headers.py`: reads header fields
"""
