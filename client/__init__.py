"""The agent that connects a machine as a node and runs node programs, and the admin client. Never imports torch."""
