"""What is watched now, in memory, and the one writer of statuses.

- `terminal.py`, `registry.py`: the watched terminals; observations of the SIP side arrive here.
- `subscription.py`, `index.py`, `rules.py`: active subscriptions, and what a subscriber is sent, and when.
- `writer.py`: statuses, progress and owed notifications in one transaction, then memory.
- `lifecycle.py`, `restore.py`: how subscriptions begin, change and end; loading them at the start.
- `mailbox.py`, `open_streams.py`, `events.py`, `resume_tokens.py`: streams.
- `group_directory.py`, `group_follower.py`: which terminals a group means, and following its changes.
- `last_statuses.py`: the newest status known of each terminal, for queries.
- `engine.py`: the loop that drives all of it. `other_nodes.py`: for several gateways on one database, not used yet.
"""
