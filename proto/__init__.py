"""The ``.proto`` sources and the modules generated from them (``make proto``). Imports no other package."""
