"""Everything that a mount needs except FUSE."""
