"""The recipe engine: stages behind one protocol, each resumable."""
