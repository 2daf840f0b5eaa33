"""A NumPyClient."""

from flwr.client import ClientApp, NumPyClient

from legacy_app.task import load_part, train


class Client(NumPyClient):
    def __init__(self, x, y, lr):
        self.x, self.y, self.lr = x, y, lr

    def fit(self, parameters, config):
        state, loss = train(dict(zip(("weight", "bias"), parameters, strict=True)), self.x, self.y, 5, self.lr)
        return [state["weight"], state["bias"]], len(self.y), {"loss": loss}

    def evaluate(self, parameters, config):
        weight, bias = parameters
        right = float(((self.x @ weight + bias).argmax(1) == self.y).mean())
        return 1 - right, len(self.y), {"acc": right}


def client_fn(context):
    x, y = load_part(context.node_config["partition-id"], context.node_config["num-partitions"])
    return Client(x, y, context.run_config["lr"]).to_client()


app = ClientApp(client_fn)
