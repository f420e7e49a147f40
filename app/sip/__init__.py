"""The watcher: SIP SUBSCRIBE/NOTIFY (RFC 6665, RFC 3856) on PJSIP, in a supervised child process.

`client` is the side of the event loop, `worker` the child; `frames` is what they say to each other. `pjsip` holds
the C calls, `message` reads header fields, and `dialog` knows what the presence server's answers mean.
"""
