"""The ground floor: errors, seeds, messages, profiles and the protocols that all rooms speak. Imports no other room."""
