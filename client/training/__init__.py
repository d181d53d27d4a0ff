"""Local training: DP-SGD with per-unit clipping, plain SGD, evaluation."""
