"""Parameters from uniform numbers that belong to a sample; pixels apart from randomness."""
