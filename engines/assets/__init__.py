"""Content that nodes need, known by digest: offered, sent once, kept on disk between runs, verified on use."""
