"""Data-parallel training of image classifiers: DistributedDataParallel whose ranks are nodes."""
