"""Many silos on one machine, running the same two app objects as a deployment."""
