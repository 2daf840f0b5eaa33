"""The dashboard: a process of its own that shows a server's nodes and runs in a browser, and can change nothing."""
