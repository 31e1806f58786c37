"""FUSE drivers: they know the file system of :mod:`jupyter_wsfuse.client.vfs`, and nothing of the network."""
