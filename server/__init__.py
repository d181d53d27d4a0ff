"""The coordinator: selects, sums, checkpoints, records, reports."""
