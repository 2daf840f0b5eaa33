"""Code that runs only on edge devices: measuring the machine's capabilities."""
