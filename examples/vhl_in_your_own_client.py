"""VHL in a custom PyTorch training loop: virtual data, a wider head and one loss object."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from farshore.algorithms.vhl import VHLLoss, VirtualData, VirtualRecipe, widen_head

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()
torch.manual_seed(0)


class Net(nn.Module):
    """Any model that returns logits and features and whose head is named ``linear``."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU())
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        features = self.body(x).mean((2, 3))
        return self.linear(features), features


digits = load_digits()
images = (torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - 0.5) / 0.25
labels = torch.tensor(digits.target)
train, test = torch.randperm(len(labels)).split(1500)

# Equal recipes give equal images, so clients only have to agree on the seed.
virtual = VirtualData.from_recipe(VirtualRecipe(classes=10, per_class=50, channels=1, size=8, seed=1))
model = Net()
widen_head(model, extra=10, seed=1)
loss_of = VHLLoss(classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

for _ in range(args.steps):
    rows = train[torch.randint(len(train), (64,))]
    rows_v = torch.randint(len(virtual.labels), (64,))
    logits, features = model(torch.cat([images[rows], virtual.floats(rows_v)]))
    loss = loss_of(logits, features, labels[rows], virtual.labels[rows_v])
    optimizer.zero_grad()
    loss.total.backward()
    optimizer.step()

with torch.no_grad():
    logits = model(images[test])[0][:, :10]
accuracy = float((logits.argmax(1) == labels[test]).float().mean())
print(f"loss {float(loss.total.detach()):.3f}, of which virtual {float(loss.virtual.detach()):.3f}")
print(f"accuracy {accuracy:.3f}")
