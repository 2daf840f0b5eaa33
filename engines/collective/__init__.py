"""Nodes as the ranks of a ``torch.distributed`` process group: the engine of the data-parallel methods."""
