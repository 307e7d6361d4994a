"""Descriptors: the only room that calls the kernel's network."""
