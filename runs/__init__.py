"""The run directory: ledger, metrics, events, checkpoints, log. Imports ``core``, ``proto`` and nothing above."""
