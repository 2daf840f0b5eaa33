"""Data sets, tasks and batches; reading them needs neither torch nor transformers."""
