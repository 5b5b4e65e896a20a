"""Training loops: plain torch, one process, no framework."""
