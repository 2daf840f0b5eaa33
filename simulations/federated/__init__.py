"""The population simulator: federated runs whose clients are rows of a table, in one process or in workers."""
