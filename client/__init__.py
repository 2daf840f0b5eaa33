"""The agent that makes a machine a node, and the runner of node programs. Imports floors 0-2; never torch by itself."""
