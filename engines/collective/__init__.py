"""Nodes as the ranks of a ``torch.distributed`` process group: what data-parallel methods share."""
