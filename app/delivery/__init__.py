"""The outbox: sends notifications to sinks, and decides when a failed notification is sent again."""
