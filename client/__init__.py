"""The silo: data, models, training, ledger, policy, node."""
