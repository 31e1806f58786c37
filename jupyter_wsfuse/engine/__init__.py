"""The engine: a process that serves workspaces over WebSocket on a loopback port."""
