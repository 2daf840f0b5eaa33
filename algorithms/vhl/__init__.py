"""Virtual homogeneity learning: every node trains on the same labelled noise beside its own data."""
