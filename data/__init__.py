"""Data sets, partitioners and generators; reading them needs no torch. Imports ``core`` and ``runs``/``wire`` at most."""
