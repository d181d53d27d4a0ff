"""What the subcommands of `fedsilo-silo` do; `client/cli.py` names them."""
