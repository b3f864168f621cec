"""What runs inside other servers: connectors that they load by name."""
