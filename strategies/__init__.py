"""The agreement: what silos and server must agree on before a round. No network, no GPU, no clock, no disk."""
