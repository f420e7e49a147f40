"""What an application may do: query terminals, open streams, subscribe, make groups; and what operators may do."""
