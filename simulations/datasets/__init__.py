"""One built-in data set a file; a file with a `Dataset` subclass is a registered data set."""
