"""What the subcommands of `fedsilo-server` do; `server/cli.py` names them."""
