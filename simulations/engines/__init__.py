"""Ways to run the two apps on one machine."""
