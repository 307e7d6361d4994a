"""Many connections over one serial port, for a machine that has no network of its own."""
