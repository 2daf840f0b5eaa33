"""Flower apps as they are: their ServerApp on the server, their ClientApp on nodes, their messages on our channels."""
