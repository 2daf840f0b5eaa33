"""The ground floor: errors, seeds, messages, profiles and the protocols that every room speaks. Imports no other room."""
