"""Split fine-tuning (arXiv 2211.16703): first blocks on the edge, the rest in the cloud, low-rank codes in between."""
