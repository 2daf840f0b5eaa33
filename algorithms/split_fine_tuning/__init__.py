"""Split fine-tuning: the front of a transformer on the edge, its trunk in the cloud, low-rank codes between them."""
