"""Connections are accepted here, and served elsewhere: in another namespace, by another user."""
