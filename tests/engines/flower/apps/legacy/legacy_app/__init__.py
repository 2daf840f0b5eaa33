"""An app as a user writes it."""
