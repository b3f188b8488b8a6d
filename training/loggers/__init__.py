"""What a run says and records: the console, progress lines, metrics.jsonl, TensorBoard."""
