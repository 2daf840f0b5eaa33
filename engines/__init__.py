"""Engines: how the programs of a run cooperate; one folder each, and no paper in any. Imports layers 0-2."""
