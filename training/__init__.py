"""Self-supervised training: one loop, one file a method, one report."""
