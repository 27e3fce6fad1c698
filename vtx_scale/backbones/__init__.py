"""Networks that turn images or tokens into features, a file each."""
