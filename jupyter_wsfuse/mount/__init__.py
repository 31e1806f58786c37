"""Mount processes: supervisor, daemon, and the local socket that controls them."""
