"""VHL and its base methods as a Flower app (``flwr run simulations/flower_vhl``), with the same results as farshore."""
