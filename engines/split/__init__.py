"""The middle of a user's own model, served from the cloud: what ``farshore.split`` puts between two halves."""
