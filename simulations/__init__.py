"""Engines that need no network: programs of a run as threads of one process, on channels that carry real frames."""
