"""Simulation of runs on one machine: programs as threads, simulated client populations, virtual time, scenarios."""
