"""The base package: errors, seeds, messages, profiles, and the contracts between packages. Imports no other package."""
