"""The format of exports and bundles. No other package knows the names of their files."""
