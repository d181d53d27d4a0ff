"""What was released (events), what it costs (accountant), whether the next release fits (budget)."""
