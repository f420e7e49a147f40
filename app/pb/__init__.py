"""Generated from `proto/` by `make generate`, committed, checked fresh by a test. Edit the `.proto`."""
