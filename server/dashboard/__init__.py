"""The dashboard: a read-only web view of a server's nodes and runs, served by a separate process."""
