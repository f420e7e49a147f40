"""The outbox: sends notifications to subscriptions' sinks, and decides when a failed one is sent again."""
