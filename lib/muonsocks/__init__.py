"""Small programs for SOCKS on Linux, and the library they share."""

__version__ = "0.1.0"
