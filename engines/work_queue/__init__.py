"""Independent items that are dealt to the next free node, and dealt again when a node is lost."""
