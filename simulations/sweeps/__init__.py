"""Sweeps: any method that runs on one node alone, over a grid of settings and seeds, as the items of a work queue."""
