"""The SOCKS protocol, who may use it, and one connection's life."""
