"""The structures of a gated MLP and of grouped-query attention (method, section 2): one file each, registered
under the entry points `koffkit.structures`."""
