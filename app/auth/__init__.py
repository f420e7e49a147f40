"""Who calls: credentials of every transport become a client."""
