"""The population simulator: federated runs with many simulated clients, in one process, in workers or in Ray actors."""
