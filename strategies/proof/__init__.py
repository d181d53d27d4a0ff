"""What can be proved of a silo offline: canonical JSON, ledger entries, their chain, and the heads that others keep."""
