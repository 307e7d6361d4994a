"""Programs that stay: workers that share listening sockets, and who looks after them."""
