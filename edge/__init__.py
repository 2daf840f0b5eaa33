"""What only a device does: measuring itself and throttling its link. Imports floors 0-2."""
