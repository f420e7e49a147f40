"""The C side: PJSIP, called through pjsua2 and cffi.

- `library.py`: the shared object and the functions called in it; `structs.py`: the structs read in it, checked at start
- `endpoint.py`: the open endpoint and its transports; `registration.py`: the gateway's own REGISTER
- `stack.py`: SUBSCRIBE dialogs: sends, receives, drops; `subscribe_dialog.py`: one of them
- `request_parts.py`: routes, Contacts, header fields and credentials of each request; `uri_check.py`: its address
- `responses.py`: reads responses out of PJSIP's events
- `incoming_messages.py`: which messages PJSIP gets to see; `dialogs.py`: whose NOTIFYs count; `response_sources.py`:
  whose responses count; `maddr.py`: names that must not become destinations
- `large_bodies.py`: bodies beyond PJSIP's buffer; `unreadable_messages.py`: what PJSIP cannot parse
- `connection_queue.py`: requests waiting for a connection; `open_connections.py`: connections that come and go;
  `incoming_connections.py`: how many we accept; `options_probe.py`: OPTIONS to each presence server
"""
