"""CCGC on a graph of one's own, without the platform: scipy matrices in, cluster labels out."""

import argparse

import numpy as np
from scipy.sparse import coo_array, csr_array

from farshore.algorithms.ccgc import CCGC
from farshore.core.seeds import Seed
from farshore.data.graph_set import Graph, undirected
from farshore.data.graph_synthetic import make_graph

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=100)
args = parser.parse_args()

# Stands for any adjacency and attribute matrix: here those of a generated graph with 600 nodes.
given = make_graph(Seed(0))
shape = (given.nodes, given.nodes)
adjacency = coo_array((np.ones(given.edges.shape[1]), tuple(given.edges)), shape=shape)
attributes, classes = csr_array(given.features), given.labels

edges, loops = undirected(np.stack([adjacency.row, adjacency.col]))
graph = Graph("mine", edges, attributes, labels=classes, loops=loops)  # labels are optional, for the metrics only

model = CCGC(clusters=4, epochs=args.epochs)
labels = model.fit_predict(graph)

print("nodes by cluster", np.bincount(labels).tolist())
print(f"CCGC {model.result_.metrics['acc']:.1f}")
for name, row in model.result_.baselines.items():
    print(f"{name} {row['acc']:.1f}")
