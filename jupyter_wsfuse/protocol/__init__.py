"""The wire protocol, without any I/O: bytes in, events out."""
