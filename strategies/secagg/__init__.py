"""Secure aggregation: the server learns the sum of the silos' vectors and nothing else of them."""
