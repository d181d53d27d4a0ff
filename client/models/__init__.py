"""One architecture a file; a file with a `Model` subclass is a registered model."""
