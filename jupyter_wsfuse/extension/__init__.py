"""The Jupyter server extension: authentication, tickets, relay, and the engine's supervisor."""
