"""One kind of data a file: records of this silo to tensors, by the public schema of the study alone."""
