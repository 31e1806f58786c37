"""The audit log as files: how entries are chained, sealed, read, searched and verified."""
